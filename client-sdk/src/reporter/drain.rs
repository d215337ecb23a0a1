//! Leaving without losing a call: say it, wait until nobody holds a list with this endpoint, then go.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::shared::{Link, Phase, Shared};

/// A balancer that does not let go for this long is left behind: a process manager kills at some point anyway.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A balancer that was reached before and is away now gets the time of the longest reconnect.
const AWAY_MAX: Duration = Duration::from_secs(5);

impl Shared {
    /// Resolves when the lists have let go, or time is up. Called again, it waits for the same end.
    pub(crate) async fn drain(&self) {
        self.phase.send_if_modified(|phase| {
            let first = *phase == Phase::Serving;
            if first {
                *phase = Phase::Draining;
            }
            first
        });
        let mut phase = self.phase.subscribe();
        let began = Instant::now();
        // The senders live in `self`, so waiting ends with the condition or with the time.
        let everyone_let_go = async {
            let mut links = self.links.subscribe();
            let patient = links.wait_for(|links| links.values().all(|link| has_let_go(link, true)));
            if timeout_at(began + AWAY_MAX, patient).await.is_err() {
                let _ = links.wait_for(|links| links.values().all(|link| has_let_go(link, false))).await;
            }
        };
        tokio::select! {
            in_time = timeout_at(began + WAIT_MAX, everyone_let_go) => {
                if in_time.is_err() {
                    tracing::warn!(service = self.registration.service, address = self.registration.address,
                        "still listed {} s after the drain began; leaving all the same", WAIT_MAX.as_secs());
                }
            }
            _ = phase.wait_for(|phase| *phase == Phase::Left) => {}
        }
    }
}

fn has_let_go(link: &Link, wait_for_the_away: bool) -> bool {
    if link.connected { link.unlisted } else { link.unlisted || !(link.reached && wait_for_the_away) }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use lookaside_proto::v1::Registration;

    fn shared(links: &[Link]) -> Shared {
        let shared = Shared::new(Registration::default(), false);
        shared.links.send_replace(links.iter().enumerate().map(|(number, link)| (at(number), *link)).collect());
        shared
    }

    fn at(number: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], number as u16))
    }

    const LISTED: Link = Link { connected: true, reached: true, accepted: true, unlisted: false, leaving: false };

    #[tokio::test(start_paused = true)]
    async fn without_a_balancer_ever_reached_leaving_takes_no_time() {
        let began = Instant::now();
        shared(&[Link::default(), Link::default()]).drain().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_balancer_lost_a_moment_ago_is_waited_for_as_long_as_a_reconnect_takes() {
        let began = Instant::now();
        shared(&[Link { connected: false, accepted: false, ..LISTED }]).drain().await;
        assert_eq!(began.elapsed().as_secs(), AWAY_MAX.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_balancer_that_never_lets_go_is_left_behind() {
        let shared = shared(&[LISTED]);
        let began = Instant::now();
        shared.drain().await;
        assert_eq!(began.elapsed().as_secs(), WAIT_MAX.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn leaving_waits_for_every_connected_balancer() {
        let shared = shared(&[LISTED, LISTED]);
        let began = Instant::now();
        let letting_go = async {
            for index in 0..2 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                shared.update_link(&at(index), |link| link.unlisted = true);
            }
        };
        tokio::join!(shared.drain(), letting_go);
        assert_eq!(began.elapsed().as_secs(), 2);
    }
}
