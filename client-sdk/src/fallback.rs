//! The endpoints that an application names itself, for when there is no list: none has come, the one there was has outlived its
//! time, or no balancer answers and nobody on the last list can be reached. Whatever a balancer says comes before them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use crate::{
    list::{ENDPOINTS_MAX, Listed},
    pool::Pool,
    resolve::{self, Name},
};

/// How often names are asked while their endpoints are in use.
const ASK_PERIOD: Duration = Duration::from_secs(10);
/// And while none of them has ever been answered.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);

/// Steps in where needed, for as long as it is polled; not before the first list has had its time.
pub(crate) async fn stand_by(pool: &Arc<Pool>, fallback: &[String], first_list_timeout: Duration) {
    if fallback.is_empty() {
        return;
    }
    let mut names: Vec<Name> = fallback.iter().map(|name| Name::new(name)).collect();
    let mut changes = pool.pickers();
    sleep(first_list_timeout).await;
    loop {
        if !pool.needs_fallback() {
            // A picker is made with every list and every connection that comes or goes.
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        }
        resolve::refresh(&mut names, Instant::now() + PATIENCE).await;
        let mut addresses = BTreeSet::new();
        // Two names may lead to one address: it is the first one's.
        let places = names.iter().flat_map(Name::places).filter(|place| addresses.insert(place.address));
        let endpoints: Vec<Listed> = places.take(ENDPOINTS_MAX).map(|place| Listed::fallback(&place)).collect();
        let trouble = names.iter().map(Name::trouble).find(|trouble| !trouble.is_empty());
        if let Some(trouble) = trouble {
            tracing::warn!(service = pool.service, "a fallback is not found: {trouble}");
        }
        let period = if endpoints.is_empty() { ASK_AGAIN } else { ASK_PERIOD };
        pool.fall_back(&endpoints);
        let needed = async { while pool.needs_fallback() && changes.changed().await.is_ok() {} };
        // Its time over, and still needed: the names may lead elsewhere by now.
        let _ = timeout(period, needed).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_names_for_one_address_are_one_endpoint() {
        let pool = Pool::new("s".into(), "c".into(), Duration::from_secs(1), 1);
        let (name, address) = ("fallback.test:50051", "127.0.0.1:1");
        resolve::say(name, Some(Ok(vec![address.parse().unwrap()])));
        let mut lists = pool.lists();
        let names = [name.to_owned(), address.to_owned()];
        tokio::select! {
            () = stand_by(&pool, &names, Duration::ZERO) => {}
            _ = lists.changed() => {}
        }
        let endpoints = pool.endpoints();
        assert_eq!(endpoints.iter().map(|e| &*e.address).collect::<Vec<_>>(), [address]);
        pool.close();
    }
}
