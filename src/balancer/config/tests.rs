use lookaside_core::{
    config::{MethodPath, MethodRule, PolicyKind, RetryCode},
    model::Address,
};

use super::*;

fn problems(text: &str) -> Vec<String> {
    match Config::parse("f", text) {
        Err(Error::Invalid { problems, .. }) => problems.iter().map(Problem::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_file_in_deploy_names_every_key_and_says_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/lookaside.yaml");
    assert_eq!(Config::load(&path).unwrap(), Config::default());
}

#[test]
fn an_empty_file_is_the_default() {
    for empty in ["", "# nothing\n", "{}", "services:\n#  - name: a\ndefaults:\n  health:\nregistration: {allow: }"] {
        assert_eq!(Config::parse("f", empty).unwrap(), Config::default());
    }
}

#[test]
fn a_service_inherits_what_it_does_not_say() {
    let text = "
defaults: { policy: round_robin, lease: 20s, health: { fall: 3 } }
services:
  - name: greeter
    health: { interval: 2s }
    panic_threshold: 30%
    endpoints:
      - 10.0.0.1:50051
      - { address: 'a:1', locality: eu/a, weight: 5, priority: 1, instance: pod-1, tls_name: x.y }
  - name: empty
    endpoints: []
  - name: registered
";
    let config = Config::parse("f", text).unwrap();
    let [greeter, empty, registered] = &config.services[..] else { panic!("{config:?}") };
    assert_eq!(greeter.config.policy, PolicyKind::RoundRobin);
    assert_eq!(greeter.config.lease, Duration::from_secs(20));
    assert_eq!(greeter.config.health.interval, Duration::from_secs(2));
    assert_eq!(greeter.config.health.fall, 3);
    assert_eq!(greeter.config.panic_threshold_percent, 30);
    let [first, second] = greeter.endpoints.as_deref().unwrap() else { panic!("{greeter:?}") };
    assert_eq!(first, &EndpointSpec::at(Address::parse("10.0.0.1:50051").unwrap()));
    assert_eq!((second.weight, second.priority, second.locality.as_str()), (5, 1, "eu/a"));
    assert_eq!((second.instance.as_str(), &*second.tls_name), ("pod-1", "x.y"));
    assert_eq!(empty.endpoints.as_deref(), Some(&[][..]));
    assert_eq!(registered.endpoints, None);
    assert_eq!(registered.config, config.defaults);
}

#[test]
fn an_unknown_key_is_refused_with_its_place() {
    for (text, line, column, word) in [
        ("listn: {}\n", 1, 1, "listn"),
        ("services:\n  - name: a\n    leese: 5s\n", 3, 5, "leese"),
        ("services:\n  - name: a\n    endpoints: [{address: 'a:1', wait: 5}]\n", 3, 34, "wait"),
        ("defaults:\n  lease: 5\n", 2, 10, "duration"),
        ("defaults:\n  panic_threshold: 200%\n", 2, 20, "percentage"),
        ("listen: { client: here }\n", 1, 19, "port"),
        ("defaults: { policy: fastest }\n", 1, 21, "fastest"),
        ("registration: { enabled: true, enabled: false }\n", 1, 32, "enabled"),
    ] {
        let error = Config::parse("f.yaml", text).unwrap_err();
        let shown = error.to_string();
        match error {
            Error::Malformed { line: l, column: c, reason, .. } => {
                assert_eq!((l, c), (line, column), "{text}: {reason}");
                assert!(reason.contains(word), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert!(shown.starts_with(&format!("f.yaml:{line}:{column}: ")), "{shown}");
    }
}

#[test]
fn all_mistakes_are_listed_at_once_in_the_order_of_the_file() {
    let text = "
listen: { client: '127.0.0.1:1', admin: '127.0.0.1:1' }
node: { id: 'a b' }
defaults:
  health: { interval: 1s, deadline: 2s, fall: 0 }
  lease: 1s
  name: x
services:
  - name: a
    endpoints: [':1', 'b:1', 'b:1', {address: 'c:1', weight: 0}, {address: 'd:1', priority: 500}]
  - name: a
  - lease: 20s
registration: { allow: [10.0.0.0/99] }
limits: { connections: 0, keepalive_interval: 0s, drain_deadline: 48h }
";
    let found = problems(text);
    let expected = [
        ("2:41", "another listener"),
        ("3:13", "node.id"),
        ("5:37", "shorter than"),
        ("5:47", "fall"),
        ("6:10", "three report periods"),
        ("7:9", "neither a name"),
        ("10:17", "no host"),
        ("10:30", "twice"),
        ("10:37", "weight"),
        ("10:66", "priority"),
        ("11:11", "twice"),
        ("12:5", "needs a name"),
        ("13:25", "0 to 32"),
        ("14:24", "connections"),
        ("14:47", "keepalive"),
        ("14:67", "drain_deadline"),
    ];
    for (place, word) in expected {
        assert!(
            found.iter().any(|p| p.starts_with(&format!("{place}: ")) && p.contains(word)),
            "{place} {word}: {found:#?}"
        );
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn rules_for_methods_are_taken_whole_by_a_service_that_has_its_own() {
    let text = "
defaults:
  retry_budget: 20%
  methods: [{ path: '', deadline: 2s }]
services:
  - name: own
    hedge_budget: 5%
    endpoint_calls_max: 8
    methods:
      - path: /s.Greeter/Get
        idempotent: true
        attempts: 3
        retry_on: [UNAVAILABLE, RESOURCE_EXHAUSTED]
        backoff: 10ms
        backoff_max: 200ms
        hedge_after: 50ms
        hedges: 2
        idempotency_key: true
        stream_idle_limit: 1m
        stream_life_limit: 1h
  - name: none
    methods: []
  - name: inherits
";
    let config = Config::parse("f", text).unwrap();
    let [own, none, inherits] = &config.services[..] else { panic!("{config:?}") };
    let [rule] = &own.config.calls.methods[..] else { panic!("{own:?}") };
    let expected = MethodRule {
        path: MethodPath::parse("/s.Greeter/Get").unwrap(),
        deadline: Duration::ZERO,
        idempotent: true,
        attempts: 3,
        retry_on: vec![RetryCode::Unavailable, RetryCode::ResourceExhausted],
        backoff: Duration::from_millis(10),
        backoff_max: Duration::from_millis(200),
        hedge_after: Duration::from_millis(50),
        hedges: 2,
        idempotency_key: true,
        stream_idle_limit: Duration::from_secs(60),
        stream_life_limit: Duration::from_secs(3600),
    };
    assert_eq!(*rule, expected);
    let calls = &own.config.calls;
    assert_eq!((calls.retry_budget_percent, calls.hedge_budget_percent, calls.endpoint_calls_max), (20, 5, 8));
    assert_eq!(none.config.calls.methods, []);
    assert_eq!(inherits.config.calls, config.defaults.calls);
    assert_eq!(config.defaults.calls.methods[0].deadline, Duration::from_secs(2));
}

#[test]
fn a_rule_for_methods_that_makes_no_sense_is_refused_with_its_reason() {
    for (rule, word) in [
        ("{ path: Get }", "not a path"),
        ("{ idempotent: true }", "needs a path"),
        ("{ path: '', attempts: 3 }", "without `idempotent: true`"),
        ("{ path: '', hedge_after: 1s }", "without `idempotent: true`"),
        ("{ path: '', idempotent: true, attempts: 6 }", "1 to 5"),
        ("{ path: '', retry_on: [UNAVAILABLE] }", "without `attempts`"),
        ("{ path: '', hedges: 2 }", "without `hedge_after`"),
        ("{ path: '', idempotent: true, attempts: 2, backoff: 5s }", "longer than backoff_max"),
        ("{ path: '', idempotent: true, hedge_after: 2s, deadline: 1s }", "shorter than deadline"),
        ("{ path: '' }, { path: '' }", "already"),
    ] {
        let found = problems(&format!("defaults: {{ methods: [{rule}] }}"));
        assert!(found.len() == 1 && found[0].contains(word), "{rule}: {found:?}");
    }
}

#[test]
fn no_text_makes_it_panic() {
    for text in
        ["\u{0}", "[", "a: &x [*x]", "- - -", "services: 5", "services: [null]", "services: [[]]", "listen: null", "💥"]
    {
        let _ = Config::parse("f", text);
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/nowhere/lookaside.yaml")).unwrap_err();
    assert!(error.to_string().starts_with("/nowhere/lookaside.yaml: "), "{error}");
}
