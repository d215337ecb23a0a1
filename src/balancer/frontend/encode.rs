//! Messages as gRPC frames: a flag for compression, the length, the message. Made once, sent to many.

use bytes::{BufMut as _, Bytes, BytesMut};
use lookaside_core::{model::Version, policy::Assignment, snapshot::ServiceSnapshot};
use lookaside_proto::v1::{self, pick_response::Kind};
use prost::Message as _;

use crate::convert;

/// A list under the version it now has.
pub(super) fn list(assignment: &Assignment, version: Version) -> Bytes {
    frame(Kind::List(v1::List { version: Some(convert::version(version)), ..convert::list(assignment) }))
}

/// What the service is at, for those that hold the list already, of which there are so many.
pub(super) fn tick(assignment: &Assignment, service: &ServiceSnapshot, clients: u32) -> Bytes {
    let fleet = service.fleet;
    frame(Kind::Tick(v1::Tick {
        service: assignment.service.to_string(),
        version: Some(convert::version(service.version)),
        digest: assignment.digest,
        complete: assignment.complete,
        hot_threshold_milli: fleet.hot_milli,
        service_time_us_mean: fleet.service_time_us,
        utilization_permille: fleet.utilization_permille,
        overload: fleet.is_overload,
        probe_budget_percent: fleet.probe_percent,
        retry_budget_percent: service.config.calls.retry_budget_percent,
        report_period_ms: u32::try_from(convert::millis(service.config.report_period)).unwrap_or(u32::MAX),
        hedge_budget_percent: service.config.calls.hedge_budget_percent,
        clients,
    }))
}

/// How calls of a service are to be made.
pub(super) fn method_policy(service: &ServiceSnapshot) -> Bytes {
    frame(Kind::MethodPolicy(convert::method_policy(&service.name, &service.config.calls)))
}

/// Any message.
pub(super) fn frame(kind: Kind) -> Bytes {
    let message = v1::PickResponse { kind: Some(kind) };
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    // Far below 4 GiB: a list has at most 10,000 endpoints of a few hundred bytes.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // It cannot fail: the buffer grows as needed.
    let _ = message.encode(&mut frame);
    frame.freeze()
}
