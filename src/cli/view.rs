//! The contract's messages as commands show them: the same words as in the messages, camelCase keys as protobuf's own
//! JSON has them, 64-bit numbers that are names (epoch, digest, incarnation) as hexadecimal text.

use lookaside_proto::v1::{self, EndpointState, ListMode, OverrideAction, ReasonCode, explanation::Verdict};
use serde::Serialize;

use crate::duration::age;

/// A list's version.
#[derive(Serialize, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    epoch: String,
    sequence: u64,
}

impl Version {
    /// Absent stays absent: a client that was sent nothing has no version.
    pub(crate) fn new(wire: Option<v1::Version>) -> Option<Self> {
        wire.map(|v| Self { epoch: format!("{:016x}", v.epoch), sequence: v.sequence })
    }
}

/// A version for a table: the epoch shortened to what tells two apart at a glance.
pub(crate) fn version(wire: Option<v1::Version>) -> String {
    wire.map_or_else(String::new, |v| format!("{:04x}:{}", v.epoch >> 48, v.sequence))
}

/// A reason with all that is known of it.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReasonDetail {
    code: &'static str,
    detail: String,
    since_ms_ago: u64,
}

/// The codes alone, the main one first.
pub(crate) fn reason_codes(reasons: &[v1::Reason]) -> Vec<&'static str> {
    reasons.iter().map(|r| reason_code(r.code)).collect()
}

/// The codes alone for a table, where details would make lines nobody reads.
pub(crate) fn codes(reasons: &[v1::Reason]) -> String {
    reason_codes(reasons).join(", ")
}

/// The same reasons in full.
pub(crate) fn reason_details(reasons: &[v1::Reason]) -> Vec<ReasonDetail> {
    reasons
        .iter()
        .map(|r| ReasonDetail { code: reason_code(r.code), detail: r.detail.clone(), since_ms_ago: r.since_ms_ago })
        .collect()
}

/// Reasons in words: `HEALTH_UNREACHABLE 9.0s (Connection refused)`, several with commas between them.
pub(crate) fn reasons(reasons: &[v1::Reason]) -> String {
    let words: Vec<String> = reasons
        .iter()
        .map(|r| {
            let mut words = reason_code(r.code).to_owned();
            if r.since_ms_ago > 0 {
                words.push_str(&format!(" {}", age(r.since_ms_ago)));
            }
            if !r.detail.is_empty() {
                words.push_str(&format!(" ({})", r.detail));
            }
            words
        })
        .collect();
    words.join(", ")
}

/// One endpoint of a list.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Endpoint {
    address: String,
    weight: u32,
    locality: String,
    priority: u32,
    reasons: Vec<&'static str>,
    reason_details: Vec<ReasonDetail>,
    instance: String,
    incarnation: String,
    capacity_milli: u32,
}

impl Endpoint {
    /// As the list names it.
    pub(crate) fn new(wire: v1::Endpoint) -> Self {
        Self {
            reasons: reason_codes(&wire.reasons),
            reason_details: reason_details(&wire.reasons),
            address: wire.address,
            weight: wire.weight,
            locality: wire.locality,
            priority: wire.priority,
            instance: wire.instance,
            incarnation: format!("{:016x}", wire.incarnation),
            capacity_milli: wire.capacity_milli,
        }
    }
}

/// An ordered list as a table.
pub(crate) fn order(endpoints: &[v1::Endpoint]) -> String {
    let rows = endpoints
        .iter()
        .enumerate()
        .map(|(index, e)| {
            [
                (index + 1).to_string(),
                e.address.clone(),
                e.locality.clone(),
                e.priority.to_string(),
                e.weight.to_string(),
                codes(&e.reasons),
            ]
        })
        .collect();
    crate::output::table(["#", "ENDPOINT", "LOCALITY", "PRIORITY", "WEIGHT", "REASONS"], rows)
}

/// Against the median, for a table; nothing where nothing is known.
pub(crate) fn capacity(milli: u32) -> String {
    if milli == 0 { String::new() } else { format!("{:.2}", f64::from(milli) / 1000.0) }
}

/// A share for a table.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// A rate for a table: enough digits to tell idle from slow.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        r if r < 9.95 => format!("{r:.1}"),
        r => format!("{r:.0}"),
    }
}

/// What a newer balancer means by this is not known here.
const UNRECOGNIZED: &str = "UNRECOGNIZED";

/// The word for a list's mode.
pub(crate) fn mode(wire: i32) -> &'static str {
    ListMode::try_from(wire).map_or(UNRECOGNIZED, |m| bare(m.as_str_name(), "LIST_MODE_"))
}

/// The word for an endpoint's state.
pub(crate) fn state(wire: i32) -> &'static str {
    EndpointState::try_from(wire).map_or(UNRECOGNIZED, |s| bare(s.as_str_name(), "ENDPOINT_STATE_"))
}

/// The word for a stage's verdict.
pub(crate) fn verdict(wire: i32) -> &'static str {
    Verdict::try_from(wire).map_or(UNRECOGNIZED, |v| bare(v.as_str_name(), "VERDICT_"))
}

/// The word for what an operator ordered.
pub(crate) fn action(wire: i32) -> &'static str {
    OverrideAction::try_from(wire).map_or(UNRECOGNIZED, |a| bare(a.as_str_name(), "OVERRIDE_ACTION_"))
}

fn reason_code(wire: i32) -> &'static str {
    ReasonCode::try_from(wire).map_or(UNRECOGNIZED, |c| bare(c.as_str_name(), "REASON_CODE_"))
}

/// Some of the contract's enums repeat their name in each word, as protobuf's scoping makes them; people need not.
fn bare(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_contract() {
        assert_eq!(mode(ListMode::LastGood.into()), "LAST_GOOD");
        assert_eq!(state(EndpointState::Eligible.into()), "ELIGIBLE");
        assert_eq!(verdict(Verdict::NotEvaluated.into()), "NOT_EVALUATED");
        assert_eq!(action(OverrideAction::Undrain.into()), "UNDRAIN");
        assert_eq!(reason_code(ReasonCode::HealthUnreachable.into()), "HEALTH_UNREACHABLE");
        assert_eq!(reason_code(9_999), "UNRECOGNIZED");
    }

    #[test]
    fn an_endpoint_of_a_list_keeps_its_json_keys() {
        let wire = v1::Endpoint {
            address: "10.0.1.11:50051".to_owned(),
            instance: "pod-1".to_owned(),
            incarnation: 255,
            locality: "eu/a".to_owned(),
            weight: 35,
            reasons: vec![v1::Reason {
                code: ReasonCode::WarmingUp.into(),
                detail: "35 %".to_owned(),
                since_ms_ago: 1200,
            }],
            ..v1::Endpoint::default()
        };
        assert_eq!(
            serde_json::to_string(&Endpoint::new(wire)).unwrap(),
            concat!(
                r#"{"address":"10.0.1.11:50051","weight":35,"locality":"eu/a","priority":0,"reasons":["WARMING_UP"],"#,
                r#""reasonDetails":[{"code":"WARMING_UP","detail":"35 %","sinceMsAgo":1200}],"instance":"pod-1","#,
                r#""incarnation":"00000000000000ff","capacityMilli":0}"#
            )
        );
    }

    #[test]
    fn a_list_is_a_table_in_its_order() {
        let endpoint = |address: &str, weight| v1::Endpoint {
            address: address.to_owned(),
            locality: "eu/a".to_owned(),
            weight,
            ..v1::Endpoint::default()
        };
        let mut drained = endpoint("10.0.1.12:50051", 0);
        drained.reasons =
            vec![v1::Reason { code: ReasonCode::AdminDrain.into(), detail: "by alice".to_owned(), since_ms_ago: 3000 }];
        assert_eq!(
            order(&[endpoint("10.0.1.11:50051", 100), drained]),
            "#  ENDPOINT         LOCALITY  PRIORITY  WEIGHT  REASONS\n\
             1  10.0.1.11:50051  eu/a      0         100     -\n\
             2  10.0.1.12:50051  eu/a      0         0       ADMIN_DRAIN"
        );
    }

    #[test]
    fn a_version_names_epoch_and_sequence() {
        let wire = v1::Version { epoch: 0x8f3a_0000_0000_0001, sequence: 41 };
        assert_eq!(version(Some(wire)), "8f3a:41");
        assert_eq!(version(None), "");
        assert_eq!(Version::new(Some(wire)), Some(Version { epoch: "8f3a000000000001".to_owned(), sequence: 41 }));
    }
}
