//! `--wait`: until every connected client has acknowledged a list that shows the operator's word.

use std::time::Duration;

use lookaside_proto::v1::{ClientDetail, Version};
use tokio::time::Instant;

use super::Taken;
use crate::clients;
use crate::exit::{Exit, Failure};

/// How long `--wait` waits unless `--timeout` says otherwise.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at the clients; lists take milliseconds, and a service may have thousands of clients.
const POLL_PERIOD: Duration = Duration::from_millis(50);

/// Waits, replica by replica, until no client holds an older list. Fails when that takes too long, and names one.
pub(super) async fn until_heard(taken: &[Taken], timeout: Option<Duration>) -> Result<(), Failure> {
    let timeout = timeout.unwrap_or(WAIT_TIMEOUT);
    let deadline = Instant::now() + timeout;
    for Taken { admin, effects, .. } in taken {
        for effect in effects {
            // Without a version nothing changed, so there is nothing to hear of.
            let Some(version) = effect.version else {
                continue;
            };
            loop {
                let clients = clients::list(admin, &effect.service).await?;
                let Some(behind) = clients.iter().find(|c| !has_heard(c, version)) else {
                    break;
                };
                if Instant::now() >= deadline {
                    return Err(timed_out(behind, timeout));
                }
                tokio::time::sleep(POLL_PERIOD).await;
            }
        }
    }
    Ok(())
}

/// Sequences order within one epoch only, so an acknowledgement of another epoch proves nothing.
fn has_heard(client: &ClientDetail, version: Version) -> bool {
    client.acknowledged.is_some_and(|acked| acked.epoch == version.epoch && acked.sequence >= version.sequence)
}

fn timed_out(behind: &ClientDetail, timeout: Duration) -> Failure {
    let why =
        if behind.refused.is_empty() { String::new() } else { format!(": it refused the list: {}", behind.refused) };
    let text = format!(
        "after {timeout:?} client \"{}\" of \"{}\" still holds an older list ({}){why}; the override stands",
        behind.client_id, behind.service, behind.state
    );
    Failure::new(Exit::TimedOut, text).next(format!("lookaside clients {}", behind.service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_acknowledgement_of_the_same_epoch_counts() {
        let client = |acknowledged| ClientDetail { acknowledged, ..ClientDetail::default() };
        let version = Version { epoch: 7, sequence: 5 };
        assert!(has_heard(&client(Some(Version { epoch: 7, sequence: 5 })), version));
        assert!(has_heard(&client(Some(Version { epoch: 7, sequence: 6 })), version));
        assert!(!has_heard(&client(Some(Version { epoch: 7, sequence: 4 })), version));
        assert!(!has_heard(&client(Some(Version { epoch: 8, sequence: 6 })), version));
        assert!(!has_heard(&client(None), version));
    }
}
