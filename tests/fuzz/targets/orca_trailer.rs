//! Whatever stands in `endpoint-load-metrics-bin`, the parser neither panics nor reads more out of it than the generated decoder
//! does.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use lookaside_proto::xds::data::orca::v3::OrcaLoadReport;
use lookaside_sdk::orca;
use prost::Message as _;

/// These bytes as the value itself, and as the report in it.
pub(crate) fn run(data: &[u8]) {
    let _ = orca::rif(data);
    let ours = read(data);
    // Stricter than the decoder it may be, about groups and lengths, but not of another opinion.
    if let (Some(ours), Ok(report)) = (ours, OrcaLoadReport::decode(data)) {
        assert_eq!(Some(ours), expected(&report));
    }
}

/// What the parser makes of a report.
pub(crate) fn read(report: &[u8]) -> Option<u32> {
    let value = orca::rif(STANDARD_NO_PAD.encode(report).as_bytes());
    assert_eq!(orca::rif(STANDARD.encode(report).as_bytes()), value);
    value
}

/// What it is to make of it.
pub(crate) fn expected(report: &OrcaLoadReport) -> Option<u32> {
    let told = *report.named_metrics.get("rif")?;
    (told.is_finite() && told >= 0.0).then(|| told.round() as u32)
}
