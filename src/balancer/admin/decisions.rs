//! Changes as they happen, after those kept.

use lookaside_core::model::ServiceName;
use lookaside_proto::v1;
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Parts;
use crate::{
    accept::Connection,
    convert,
    driver::{Handle, Recorded},
    limits::DECISIONS_WAITING_MAX,
};

type Decisions = ReceiverStream<Result<v1::Decision, Status>>;

/// Which decisions somebody wants.
struct Wanted {
    service: Option<ServiceName>,
    reason: Option<v1::ReasonCode>,
}

impl Wanted {
    fn includes(&self, recorded: &Recorded) -> bool {
        let decision = &recorded.decision;
        let has = |reason: v1::ReasonCode| decision.reasons.iter().any(|r| convert::code(r.code) == reason);
        self.service.as_ref().is_none_or(|service| *service == decision.service) && self.reason.is_none_or(has)
    }
}

/// The last ones, and if asked for those to come.
pub(super) fn watch(
    parts: &Parts,
    request: v1::WatchDecisionsRequest,
    connection: &Connection,
) -> Result<Decisions, Status> {
    let service = match request.service.as_str() {
        "" => None,
        name => Some(convert::service(name)?),
    };
    let reason = match v1::ReasonCode::try_from(request.reason) {
        Ok(v1::ReasonCode::Unspecified) => None,
        Ok(reason) => Some(reason),
        Err(_) => {
            let metadata = request.reason.to_string();
            let words = "there is no such reason";
            return Err(convert::refused(
                tonic::Code::InvalidArgument,
                "REASON_UNKNOWN",
                words,
                &[("reason", &metadata)],
            ));
        }
    };
    let wanted = Wanted { service, reason };
    let (kept, mut coming) = parts.driver.decisions();
    let mut past: Vec<_> = kept.into_iter().filter(|recorded| wanted.includes(recorded)).collect();
    past.drain(..past.len().saturating_sub(request.last as usize));
    let (out, decisions) = mpsc::channel(DECISIONS_WAITING_MAX);
    let (driver, draining, leaving) = (parts.driver.clone(), parts.draining.clone(), connection.leaving().clone());
    tokio::spawn(async move {
        for recorded in past {
            if out.send(Ok(say(&driver, &recorded))).await.is_err() {
                return;
            }
        }
        if !request.follow {
            return;
        }
        loop {
            let ends = |why| {
                // Nobody may be there to hear it.
                let _ = out.try_send(Err(Status::unavailable(why)));
            };
            let recorded = tokio::select! {
                biased; // At the end of the balancer connections end as well.
                () = draining.cancelled() => return ends("balancer is draining"),
                () = leaving.cancelled() => return ends("the connection has reached its age: open another"),
                recorded = coming.recv() => recorded,
                () = out.closed() => return,
            };
            match recorded {
                Ok(recorded) if wanted.includes(&recorded) => {
                    if out.send(Ok(say(&driver, &recorded))).await.is_err() {
                        return;
                    }
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    });
    Ok(ReceiverStream::new(decisions))
}

fn say(driver: &Handle, recorded: &Recorded) -> v1::Decision {
    let decision = &recorded.decision;
    let now = driver.now();
    v1::Decision {
        at_unix_ms: recorded.at_unix_ms,
        service: decision.service.to_string(),
        address: decision.address.as_ref().map(ToString::to_string).unwrap_or_default(),
        kind: decision.kind.name().to_owned(),
        change: decision.change.clone(),
        reasons: decision.reasons.iter().map(|reason| convert::reason(reason, now)).collect(),
        version: Some(convert::version(decision.version)),
    }
}
