//! `lookaside dev --chaos`: what goes wrong, or is done on purpose, while the load runs. Said as it happens.

use std::cell::RefCell;
use std::time::Duration;

use lookaside_proto::v1::OverrideAction;
use tokio::time::sleep;

use super::fleet::Fleet;
use super::live::Live;
use crate::exit::Failure;

/// What happens in the middle of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Chaos {
    /// Nothing.
    None,
    /// One backend dies without a word.
    Kill,
    /// An operator drains one endpoint, and takes it back later.
    Drain,
    /// One backend more is started.
    Scale,
    /// Every backend in turn is stopped and replaced.
    Roll,
}

/// Lets it happen, in the course of a run of this length. Fails when the fleet does not obey.
pub(super) async fn run(
    fleet: &mut Fleet,
    chaos: Chaos,
    length: Duration,
    live: &RefCell<Live>,
) -> Result<(), Failure> {
    let say = |what: &str, address: Option<String>| {
        if let Some(address) = address {
            live.borrow_mut().say(&format!("chaos: {what} {address}"));
        }
    };
    match chaos {
        Chaos::None => {}
        Chaos::Kill => {
            sleep(length / 2).await;
            say("killed", fleet.kill_first());
        }
        Chaos::Drain => {
            sleep(length / 3).await;
            say("drained", fleet.order_first(OverrideAction::Drain).await?);
            sleep(length / 3).await;
            say("undrained", fleet.order_first(OverrideAction::Undrain).await?);
        }
        Chaos::Scale => {
            sleep(length / 3).await;
            say("started", Some(fleet.add().await?));
        }
        Chaos::Roll => {
            // The first and the last quarter show the fleet at rest.
            sleep(length / 4).await;
            let backends = fleet.len();
            let pause = length / 2 / u32::try_from(backends.max(1)).unwrap_or(u32::MAX);
            for _ in 0..backends {
                let (started, stopped) = (fleet.add().await?, fleet.stop_first().await);
                say("started", Some(started));
                say("stopped", stopped);
                sleep(pause).await;
            }
        }
    }
    Ok(())
}
