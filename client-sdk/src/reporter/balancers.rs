//! Every balancer there is to report to: each address that the configured names lead to has a report stream of its own. Names
//! are asked again and again, so that a new replica hears of the backend without a restart.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{link, shared::Shared};
use crate::resolve::{self, Name, Place};

/// More balancers than this are a mistake, since each gets a stream: further addresses of a name are left out.
pub(super) const BALANCERS_MAX: usize = 64;
/// How often names are asked, a tenth more or less; and while one has never been answered.
const ASK_PERIOD: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs until the backend has left.
pub(super) async fn report_to_all(shared: Arc<Shared>, mut names: Vec<Name>) {
    let mut streams: BTreeMap<SocketAddr, AbortOnDropHandle<()>> = BTreeMap::new();
    let work = async {
        loop {
            // Addresses first: a name service that hangs keeps nobody waiting who needs none.
            follow(&shared, &names, &mut streams);
            if !names.iter().any(Name::may_change) {
                return std::future::pending().await;
            }
            resolve::refresh(&mut names, Instant::now() + PATIENCE).await;
            follow(&shared, &names, &mut streams);
            let unanswered = names.iter().find(|name| name.places().next().is_none());
            if let Some(name) = unanswered {
                tracing::debug!(service = shared.registration.service, "no balancer known: {}", name.trouble());
            }
            let period = if unanswered.is_some() { ASK_AGAIN } else { ASK_PERIOD };
            sleep(link::jittered(period)).await;
        }
    };
    let mut left = Arc::clone(&shared).left();
    tokio::select! {
        () = left.as_mut() => {}
        () = work => {}
    }
    // Each says goodbye by itself.
    for stream in streams.into_values() {
        let _ = stream.await;
    }
}

fn follow(shared: &Arc<Shared>, names: &[Name], streams: &mut BTreeMap<SocketAddr, AbortOnDropHandle<()>>) {
    let places: BTreeMap<SocketAddr, Place> =
        names.iter().flat_map(Name::places).map(|place| (place.address, place)).collect();
    // One that its name no longer leads to is left once its stream is broken: name services forget what is only unready.
    streams.retain(|address, _| {
        let stays = places.contains_key(address) || shared.link(address).connected;
        if !stays {
            shared.forget_link(address);
        }
        stays
    });
    for (address, place) in places {
        if streams.len() < BALANCERS_MAX && !streams.contains_key(&address) {
            shared.update_link(&address, |_| {});
            let reporting = tokio::spawn(link::keep_reporting(Arc::clone(shared), place));
            streams.insert(address, AbortOnDropHandle::new(reporting));
        }
    }
}
