//! A certificate authority of a test, and what it signs, as files that are gone with it.

use std::{
    fs,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::TemporaryDirectory;

/// Clocks differ a little, and nobody is to be refused for that.
const BEGAN_BEFORE: Duration = Duration::from_secs(5);

/// A certificate authority.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TemporaryDirectory,
}

impl Ca {
    /// A new one, of which nobody has heard.
    #[allow(clippy::new_without_default, reason = "it makes something on disk")]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "CA of a test");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let ca = Self { issuer, folder: TemporaryDirectory::new() };
        fs::write(ca.folder.path().join("ca.crt"), ca.issuer.pem()).unwrap();
        ca
    }

    /// The file `<name>.<end>`, as text.
    pub fn path(&self, file: &str) -> String {
        self.folder.path().join(file).to_str().unwrap().to_owned()
    }

    /// The CA's own certificate.
    pub fn ca(&self) -> String {
        self.path("ca.crt")
    }

    /// Writes `<file>.crt` and `<file>.key`, for these names, good for an hour.
    pub fn sign(&self, file: &str, names: &[&str]) {
        self.sign_for(file, names, Duration::from_secs(3600));
    }

    /// The same with a life of its own. Old files are replaced one after the other, each in one instant.
    pub fn sign_for(&self, file: &str, names: &[&str], life: Duration) {
        for (end, text) in ["crt", "key"].iter().zip(self.signed(names, life)) {
            let (path, fresh) = (self.path(&format!("{file}.{end}")), self.path(&format!("{file}.{end}.new")));
            fs::write(&fresh, text).unwrap();
            fs::rename(fresh, path).unwrap();
        }
    }

    /// Rewrites both files in place, as tools do that know no better: a reader may see half of one.
    pub fn overwrite(&self, file: &str, names: &[&str], life: Duration) {
        for (end, text) in ["crt", "key"].iter().zip(self.signed(names, life)) {
            fs::write(self.path(&format!("{file}.{end}")), text).unwrap();
        }
    }

    fn signed(&self, names: &[&str], life: Duration) -> [String; 2] {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = (SystemTime::now() - BEGAN_BEFORE).into();
        params.not_after = (SystemTime::now() + life).into();
        let key = KeyPair::generate().unwrap();
        [params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem()]
    }

    /// Flags of a command that trusts this CA and shows `<file>.crt`.
    pub fn flags(&self, file: &str) -> Vec<String> {
        let (cert, key) = (self.path(&format!("{file}.crt")), self.path(&format!("{file}.key")));
        ["--ca", &self.ca(), "--cert", &cert, "--key", &key].map(str::to_owned).to_vec()
    }
}

/// An address of this machine that is not loopback. Panics where there is none, as in a sandbox without a network.
pub fn own_address() -> IpAddr {
    // Nothing is sent: connecting a datagram socket only asks for the way.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let outward = ["192.0.2.1:9", "198.51.100.1:9", "10.0.0.1:9"];
    let found = outward.iter().find_map(|there| {
        socket.connect(there).ok()?;
        socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
    });
    found.expect("an address of this machine besides loopback")
}
