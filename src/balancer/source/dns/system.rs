//! The system's own name servers and search list, from `resolv.conf`. It is read again when it has changed, which others
//! do while the balancer runs; a file that cannot be read then changes nothing.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::SystemTime,
};

use hickory_resolver::{proto::rr::Name, system_conf::parse_resolv_conf};
use lookaside_core::model::printable;

/// Where name servers listen.
const PORT: u16 = 53;

/// Where a system keeps it.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What is in the file, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct System {
    pub(super) servers: Vec<SocketAddr>,
    search: Vec<Name>,
    /// A name with fewer dots is looked for below the search list first.
    ndots: usize,
}

impl System {
    /// Names to be asked for in place of one that is not absolute, in order.
    pub(super) fn candidates(&self, name: &Name) -> Vec<Name> {
        let below = self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok());
        let mut names: Vec<Name> = below.collect();
        let mut own = name.clone();
        own.set_fqdn(true);
        let at = if usize::from(name.num_labels()) > self.ndots { 0 } else { names.len() };
        names.insert(at, own);
        names
    }
}

/// The file, and what it said when it was read last.
#[derive(Debug)]
pub(super) struct ResolvConf {
    path: PathBuf,
    read: Option<(Stamp, System)>,
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    changed: Option<SystemTime>,
    length: u64,
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self::at(RESOLV_CONF.into())
    }
}

impl ResolvConf {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, read: None }
    }

    /// What it says, and whether that is new. Fails only where it could never be read.
    pub(super) fn look(&mut self) -> Result<(&System, bool), String> {
        let stamp = fs::metadata(&self.path).map(|data| Stamp { changed: data.modified().ok(), length: data.len() });
        let is_new = match (&stamp, &self.read) {
            (Ok(stamp), Some((read, _))) => stamp != read,
            (Ok(_), None) => true,
            (Err(_), _) => false,
        };
        let fresh = match &stamp {
            Ok(stamp) if is_new => self.parse().map(|system| (*stamp, system)),
            Ok(_) => Err(String::new()),
            Err(error) => Err(error.to_string()),
        };
        let path = self.path.display().to_string();
        let is_new = fresh.is_ok();
        match (fresh, &mut self.read) {
            (Ok(fresh), read) => *read = Some(fresh),
            (Err(reason), Some(_)) if reason.is_empty() => {}
            (Err(reason), Some(_)) => tracing::debug!(path, reason, "what it said before still holds"),
            (Err(reason), None) => return Err(format!("{path}: {reason}")),
        }
        self.read.as_ref().map(|(_, system)| (system, is_new)).ok_or(path)
    }

    fn parse(&self) -> Result<System, String> {
        let bytes = fs::read(&self.path).map_err(|error: io::Error| error.to_string())?;
        let (config, options) = parse_resolv_conf(bytes).map_err(|error| printable(&error.to_string()))?;
        let server = |ip: IpAddr| SocketAddr::new(ip, PORT);
        let mut search = config.search().to_vec();
        search.iter_mut().for_each(|domain| domain.set_fqdn(true));
        Ok(System {
            servers: config.name_servers().iter().map(|config| server(config.ip)).collect(),
            search,
            ndots: options.ndots,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn a_name_is_looked_for_below_the_search_list_as_its_dots_want() {
        let system = System { servers: Vec::new(), search: vec![name("a.test."), name("test.")], ndots: 2 };
        let texts = |text: &str| system.candidates(&name(text)).iter().map(Name::to_ascii).collect::<Vec<_>>();
        assert_eq!(texts("web"), ["web.a.test.", "web.test.", "web."]);
        assert_eq!(texts("web.b.c"), ["web.b.c.", "web.b.c.a.test.", "web.b.c.test."]);
    }

    #[test]
    fn a_file_that_changes_is_read_again_and_one_that_goes_changes_nothing() {
        let path = std::env::temp_dir().join(format!("lookaside-resolv-{}.conf", std::process::id()));
        let mut file = ResolvConf::at(path.clone());
        assert!(file.look().is_err_and(|reason| reason.contains("resolv")));
        fs::write(&path, "nameserver 10.0.0.2\nsearch a.test\noptions ndots:5\n").unwrap();
        let (system, is_new) = file.look().unwrap();
        assert!(is_new);
        assert_eq!(system.servers, ["10.0.0.2:53".parse().unwrap()]);
        assert_eq!((system.search.as_slice(), system.ndots), ([name("a.test.")].as_slice(), 5));
        assert!(!file.look().unwrap().1);
        fs::write(&path, "nameserver 10.0.0.3\nnameserver ::1\n").unwrap();
        let (system, is_new) = file.look().unwrap();
        assert_eq!((system.servers.len(), is_new), (2, true));
        fs::write(&path, "nothing in it").unwrap();
        assert_eq!(file.look().unwrap().0.servers.len(), 2);
        fs::remove_file(&path).unwrap();
        assert_eq!(file.look().unwrap().0.servers.len(), 2);
    }
}
