//! Names that stand for several addresses: balancers behind one DNS name, a fallback. The last good answer is kept through
//! everything that is not a better one: an error, no answer and an empty answer prove nothing.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

/// Addresses of one name that are used; further ones are left out.
const ADDRESSES_MAX: usize = 1_024;

/// One place that a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// `host:port` as it was configured: what the peer calls itself.
    pub(crate) name: Arc<str>,
    /// Where to connect to.
    pub(crate) address: SocketAddr,
}

/// A `host:port`, and where it led when last asked.
#[derive(Debug)]
pub(crate) struct Name {
    text: Arc<str>,
    addresses: Vec<SocketAddr>,
    /// An IP address: there is nothing to ask.
    literal: bool,
    under_way: Option<AbortOnDropHandle<io::Result<Vec<SocketAddr>>>>,
    trouble: String,
}

impl Name {
    /// Knows nothing yet, unless it is an IP address.
    pub(crate) fn new(text: &str) -> Self {
        let literal = text.parse::<SocketAddr>().ok();
        Self {
            text: text.into(),
            addresses: literal.into_iter().collect(),
            literal: literal.is_some(),
            under_way: None,
            trouble: String::new(),
        }
    }

    /// Whether asking again may tell anything else.
    pub(crate) fn may_change(&self) -> bool {
        !self.literal
    }

    /// Every place it is known to stand for.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.addresses.iter().map(|address| Place { name: self.text.clone(), address: *address })
    }

    /// Why it could not be asked, the last time; empty when it could.
    pub(crate) fn trouble(&self) -> &str {
        &self.trouble
    }

    /// Asks where it leads, and waits for the answer until then. A question that is still open is not asked twice: the
    /// system's resolver may take half a minute, on a thread of its own.
    pub(crate) async fn refresh(&mut self, until: Instant) {
        if self.literal {
            return;
        }
        let asked = self.text.clone();
        let lookup = self.under_way.get_or_insert_with(|| AbortOnDropHandle::new(tokio::spawn(look_up(asked))));
        let Ok(answer) = timeout_at(until, lookup).await else {
            self.trouble = format!("{}: the name service takes its time", self.text);
            return;
        };
        self.under_way = None;
        match answer {
            Ok(Ok(mut found)) if !found.is_empty() => {
                found.sort_unstable();
                found.dedup();
                found.truncate(ADDRESSES_MAX);
                self.addresses = found;
                self.trouble.clear();
            }
            Ok(Ok(_)) => self.trouble = format!("{}: the name has no address", self.text),
            Ok(Err(error)) => self.trouble = format!("{}: {error}", self.text),
            // Its runtime goes down.
            Err(error) => self.trouble = format!("{}: {error}", self.text),
        }
    }
}

/// Asks for all of these at once.
pub(crate) async fn refresh(names: &mut [Name], until: Instant) {
    // The first round starts every question, so that the second waits for all of them together.
    for name in names.iter_mut() {
        name.refresh(Instant::now()).await;
    }
    for name in names.iter_mut().filter(|name| name.under_way.is_some()) {
        name.refresh(until).await;
    }
}

#[cfg(not(test))]
async fn look_up(name: Arc<str>) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host(&*name).await?.collect())
}

#[cfg(test)]
pub(crate) use tests::{look_up, say};

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Mutex, PoisonError},
        time::Duration,
    };

    use super::*;

    /// What the name service of these tests says: an answer, an error (`Err`), or nothing at all (`None`).
    type Answer = Option<Result<Vec<SocketAddr>, ()>>;

    static SAID: Mutex<BTreeMap<String, Answer>> = Mutex::new(BTreeMap::new());

    /// From now on this name leads there. A test uses a name of its own.
    pub(crate) fn say(name: &str, answer: Answer) {
        SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), answer);
    }

    pub(crate) async fn look_up(name: Arc<str>) -> io::Result<Vec<SocketAddr>> {
        let said = SAID.lock().unwrap_or_else(PoisonError::into_inner).get(&*name).cloned();
        match said {
            Some(Some(Ok(addresses))) => Ok(addresses),
            Some(Some(Err(()))) => Err(io::Error::other("SERVFAIL")),
            Some(None) => std::future::pending().await,
            None => Ok(tokio::net::lookup_host(&*name).await?.collect()),
        }
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn addresses(name: &Name) -> Vec<SocketAddr> {
        name.places().map(|place| place.address).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_better_answer_replaces_an_answer() {
        let mut names = [Name::new("resolve.test:1"), Name::new("10.0.0.1:7400")];
        let mut ask = async |answer: Answer| {
            say("resolve.test:1", answer);
            refresh(&mut names, Instant::now() + Duration::from_secs(1)).await;
            (addresses(&names[0]), names[0].trouble().to_owned())
        };
        assert_eq!(ask(Some(Ok(vec![at(2), at(1), at(2)]))).await, (vec![at(1), at(2)], String::new()));
        let (kept, trouble) = ask(Some(Ok(Vec::new()))).await;
        assert!(kept == [at(1), at(2)] && trouble.contains("no address"), "{trouble}");
        let (kept, trouble) = ask(Some(Err(()))).await;
        assert!(kept == [at(1), at(2)] && trouble.contains("SERVFAIL"), "{trouble}");
        let (kept, trouble) = ask(None).await;
        assert!(kept == [at(1), at(2)] && trouble.contains("takes its time"), "{trouble}");
        assert!(!names[1].may_change() && addresses(&names[1]).len() == 1);
    }

    #[tokio::test]
    async fn names_of_this_machine_are_found() {
        let mut name = Name::new("localhost:7400");
        name.refresh(Instant::now() + Duration::from_secs(10)).await;
        assert!(addresses(&name).contains(&at(7400)), "{name:?}");
    }
}
