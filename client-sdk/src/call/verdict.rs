//! What an HTTP/2 error means for a call: that it was provably not processed, or a status.

use h2::Reason;
use tonic::{Code, Status};

use crate::{
    connection::Goodbye,
    error::flatten,
    why::{self, What},
};

/// What became of an attempt that failed.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Sent, and refused for this reason, which says that there is too much to do: it may go elsewhere.
    Refused(String),
    /// Provably not processed, for this reason: it may go elsewhere.
    NotProcessed(String),
    /// It may have been processed.
    Failed(Status),
    /// It may have been processed, and it failed for a reason of this side.
    Final(Status),
}

/// Judges a stream's error. `answered` is whether a response head had come: from then on nothing is unprocessed.
pub(crate) fn of_error(
    error: &h2::Error,
    goodbye: Option<&Goodbye>,
    address: &str,
    number: u32,
    answered: bool,
) -> Verdict {
    if error.is_remote() && !answered {
        if error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM) {
            return Verdict::Refused("refused: it takes no more streams".to_owned());
        }
        if error.is_go_away() {
            // h2 gives this to streams above the last one the peer says it will process, and to no other.
            return Verdict::NotProcessed("it said goodbye before the call".to_owned());
        }
    }
    let progress =
        if answered { "after the answer had begun" } else { "after it was sent; it may have been processed" };
    if let Some(reason) = error.reason().filter(|_| error.is_reset()) {
        let message = format!("call to {address} failed: stream reset with {reason:?} {progress}");
        return Verdict::Failed(why::status(code_of(reason), message, Some(address), What::StreamReset, number));
    }
    let mut reason = flatten(error);
    if let Some(goodbye) = goodbye.filter(|g| !reason.contains(&g.reason)) {
        reason = format!("{reason}: {}", goodbye.reason);
    }
    let message = format!("call to {address} failed: connection lost {progress}: {reason}");
    Verdict::Failed(why::status(Code::Unavailable, message, Some(address), What::ConnectionLost, number))
}

/// The code gRPC over HTTP/2 gives to each reason for a reset.
fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::REFUSED_STREAM => Code::Unavailable,
        Reason::CANCEL => Code::Cancelled,
        Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        // Reasons are numbers, and so an open set; every other one is an internal error of the two ends.
        _ => Code::Internal,
    }
}
