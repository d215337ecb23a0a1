use super::*;
use crate::config;

fn rules() -> Rules {
    rules_of("{}")
}

/// As a balancer with this configuration has them.
fn rules_of(text: &str) -> Rules {
    let config = config::Config::parse("f", text).unwrap();
    let own = vec!["0.0.0.0:7400".parse().unwrap(), "127.0.0.1:7401".parse().unwrap()];
    Rules { live: config::Live::fixed(config), own }
}

fn peer(ip: &str) -> Peer {
    Peer { ip: ip.parse().unwrap(), local_ip: Some("10.0.0.9".parse().unwrap()) }
}

fn reason<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    use tonic_types::StatusExt as _;
    let status = result.unwrap_err();
    status.get_error_details().error_info().map(|i| i.reason.clone()).unwrap_or_default()
}

fn wire(address: &str) -> v1::Registration {
    v1::Registration { service: "s".into(), address: address.into(), incarnation: 1, ..Default::default() }
}

#[test]
fn a_backend_registers_the_address_it_connects_from_and_no_other() {
    for (address, from, refused) in [
        ("10.0.0.1:80", "10.0.0.1", ""),
        ("[2001:db8::1]:80", "2001:db8::1", ""),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1", ""),
        ("10.0.0.2:80", "10.0.0.1", "ENDPOINT_FOREIGN_ADDRESS"),
        ("backend.example:80", "10.0.0.1", "ENDPOINT_HOST_NAME"),
        ("0.0.0.0:80", "10.0.0.1", "ENDPOINT_ADDRESS_UNUSABLE"),
        ("224.0.0.1:80", "10.0.0.1", "ENDPOINT_ADDRESS_UNUSABLE"),
        ("255.255.255.255:80", "10.0.0.1", "ENDPOINT_ADDRESS_UNUSABLE"),
        ("169.254.169.254:80", "169.254.169.254", "ENDPOINT_ADDRESS_UNUSABLE"),
        ("[fe80::1]:80", "fe80::1", "ENDPOINT_ADDRESS_UNUSABLE"),
        ("[::ffff:169.254.169.254]:80", "10.0.0.1", "ENDPOINT_ADDRESS_UNUSABLE"),
        ("10.0.0.9:7400", "10.0.0.9", "ENDPOINT_IS_BALANCER"),
        ("127.0.0.1:7400", "127.0.0.1", "ENDPOINT_IS_BALANCER"),
        ("127.0.0.1:7401", "127.0.0.1", "ENDPOINT_IS_BALANCER"),
        ("127.0.0.1:7402", "127.0.0.1", ""),
        ("nonsense", "10.0.0.1", "ADDRESS_INVALID"),
    ] {
        let result = registration(&wire(address), &rules(), peer(from));
        match refused {
            "" => assert!(result.is_ok(), "{address}: {result:?}"),
            expected => assert_eq!(reason(result), expected, "{address}"),
        }
    }
}

#[test]
fn what_the_configuration_allows_is_allowed() {
    let rules = rules_of("registration: { allow: [10.1.0.0/16] }");
    assert!(registration(&wire("10.1.2.3:80"), &rules, peer("10.0.0.1")).is_ok());
    assert_eq!(reason(registration(&wire("10.2.2.3:80"), &rules, peer("10.0.0.1"))), "ENDPOINT_FOREIGN_ADDRESS");
    let rules = rules_of("registration: { allow_foreign_addresses: true }");
    assert!(registration(&wire("10.2.2.3:80"), &rules, peer("10.0.0.1")).is_ok());
    assert!(registration(&wire("backend.example:80"), &rules, peer("10.0.0.1")).is_ok());
    let metadata_service = registration(&wire("169.254.169.254:80"), &rules, peer("10.0.0.1"));
    assert_eq!(reason(metadata_service), "ENDPOINT_ADDRESS_UNUSABLE");
}

#[test]
fn absurd_registrations_are_refused() {
    let base = wire("10.0.0.1:80");
    for (wire, expected) in [
        (v1::Registration { service: String::new(), ..base.clone() }, "SERVICE_INVALID"),
        (v1::Registration { service: "a b".into(), ..base.clone() }, "SERVICE_INVALID"),
        (v1::Registration { instance: "x".repeat(300), ..base.clone() }, "INSTANCE_INVALID"),
        (v1::Registration { locality: "a/b/c/d".into(), ..base.clone() }, "LOCALITY_INVALID"),
        (v1::Registration { tls_name: "a\n".into(), ..base.clone() }, "TLS_NAME_INVALID"),
        (v1::Registration { incarnation: 0, ..base.clone() }, "INCARNATION_MISSING"),
        (v1::Registration { weight: 10_001, ..base.clone() }, "WEIGHT_TOO_LARGE"),
        (v1::Registration { priority: 128, ..base }, "PRIORITY_TOO_LARGE"),
    ] {
        assert_eq!(reason(registration(&wire, &rules(), peer("10.0.0.1"))), expected);
    }
}

#[test]
fn counters_that_cannot_be_are_refused() {
    for bad in [f64::NAN, f64::INFINITY, -0.5, 1e9] {
        let cpu = v1::Counters { cpu_utilization: bad, ..Default::default() };
        assert_eq!(reason(counters(&cpu, 1)), "UTILIZATION_OUT_OF_RANGE", "{bad}");
        let utilization = [("disk".to_owned(), bad)].into();
        let named = v1::Counters { utilization, ..Default::default() };
        assert_eq!(reason(counters(&named, 1)), "UTILIZATION_OUT_OF_RANGE", "{bad}");
    }
    let more = v1::Counters { completions: 1, errors_overload: 1, errors_endpoint: 1, ..Default::default() };
    assert_eq!(reason(counters(&more, 1)), "COUNTERS_INCONSISTENT");
    let over = v1::Counters { errors_overload: u64::MAX, errors_endpoint: 1, ..Default::default() };
    assert_eq!(reason(counters(&over, 1)), "COUNTERS_INCONSISTENT");
}

#[test]
fn the_fullest_utilization_counts_and_none_measured_is_none() {
    let report = |cpu_utilization, application_utilization, disk| {
        let utilization = [("disk".to_owned(), disk)].into();
        let wire = v1::Counters { cpu_utilization, application_utilization, utilization, ..Default::default() };
        counters(&wire, 1).unwrap().utilization_permille
    };
    assert_eq!(report(0.2, 0.9, 0.5), Some(900));
    assert_eq!(report(0.2, 0.1, 1.5), Some(1500));
    assert_eq!(report(0.0, 0.0, 0.0), None);
}

#[test]
fn a_backend_repeats_words_about_itself_alone() {
    use v1::r#override::Scope as Wire;
    let me = Registration {
        service: ServiceName::parse("s").unwrap(),
        endpoint: EndpointSpec {
            locality: Locality::parse("eu/a").unwrap(),
            ..EndpointSpec::at(Address::parse("10.0.0.1:80").unwrap())
        },
    };
    let word = v1::Override {
        service: "s".into(),
        scope: Some(Wire::WholeService(true)),
        action: v1::OverrideAction::Drain.into(),
        set_at_unix_ms: 1_000,
        replica: "b1".into(),
        expires_at_unix_ms: 5_000,
        ..Default::default()
    };
    let taken = overrides(std::slice::from_ref(&word), &me, 2_000).unwrap();
    assert_eq!(taken[0].scope, Scope::Address(me.endpoint.address.clone()));
    assert_eq!(taken[0].remaining, Some(std::time::Duration::from_secs(3)));
    assert_eq!(overrides(std::slice::from_ref(&word), &me, 5_000).unwrap(), [], "it has ended");
    for (bad, expected) in [
        (v1::Override { service: "t".into(), ..word.clone() }, "OVERRIDE_FOREIGN"),
        (v1::Override { scope: Some(Wire::Address("10.0.0.2:80".into())), ..word.clone() }, "OVERRIDE_FOREIGN"),
        (v1::Override { scope: Some(Wire::Locality("eu/b".into())), ..word.clone() }, "OVERRIDE_FOREIGN"),
        (v1::Override { scope: None, ..word.clone() }, "OVERRIDE_SCOPE_MISSING"),
        (v1::Override { action: 0, ..word.clone() }, "OVERRIDE_ACTION_INVALID"),
        (v1::Override { replica: String::new(), ..word.clone() }, "OVERRIDE_UNSIGNED"),
        (v1::Override { set_at_unix_ms: 0, ..word.clone() }, "OVERRIDE_UNSIGNED"),
        (v1::Override { set_at_unix_ms: u64::MAX, ..word.clone() }, "OVERRIDE_FROM_FUTURE"),
    ] {
        assert_eq!(reason(overrides(&[bad], &me, 2_000)), expected);
    }
    assert_eq!(reason(overrides(&vec![word; 1_000], &me, 2_000)), "OVERRIDES_TOO_MANY");
}
