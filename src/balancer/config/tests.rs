use lookaside_core::{
    config::{MethodPath, MethodRule, PolicyKind, RetryCode},
    model::{Address, Locality},
};

use super::*;

fn problems(text: &str) -> Vec<String> {
    let error = Config::parse("f", text).expect_err(text);
    error.problems.iter().map(Problem::to_string).collect()
}

#[test]
fn the_file_in_deploy_names_every_key_and_says_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/lookaside.yaml");
    let config = Config::load(&path).unwrap();
    assert_eq!(config.origin.as_ref().map(|origin| &origin.path), Some(&path));
    assert_eq!(Config { origin: None, ..config }, Config::default());
}

/// A file per code in `tests/fixtures/config/`, and beside it what is said of it. `UPDATE=1` rewrites that.
#[test]
fn every_code_has_a_file_that_shows_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/config");
    for code in Code::ALL {
        let name = code.name();
        let path = folder.join(format!("{name}.yaml"));
        assert!(path.exists(), "{name} ({code:?}) has no file {}", path.display());
        // What a running balancer cannot change is wrong only for one that runs: here, one with the defaults.
        let running = (code == Code::NeedsRestart).then(|| Origin::new(&path, 0, &Config::default()));
        let mut error = Config::understand(&path, read(&path), running.as_ref().map_or(Reading::Whole, Reading::Again))
            .expect_err(name);
        assert!(error.problems.iter().all(|problem| problem.code == code), "{error}");
        error.path = format!("{name}.yaml");
        let told = folder.join(format!("{name}.txt"));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&told, error.pictures()).unwrap();
        }
        assert_eq!(fs::read_to_string(&told).unwrap_or_default(), error.pictures(), "{}", told.display());
    }
    let files = fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, Code::ALL.len() * 2, "a file of no code in {}", folder.display());
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
fn a_mistake_of_form_is_told_with_its_place_and_what_would_be_right() {
    for (text, told) in [
        ("listn: {}\n", "1:1: LKS0103: unknown key `listn`; did you mean `listen`? (known here: listen, tls,"),
        ("services:\n  - name: a\n    leese: 5s\n", "3:5: LKS0103: unknown key `leese`; did you mean `lease`?"),
        ("services:\n  - name: a\n    endpoints: [{address: 'a:1', wait: 5}]\n", "3:34: LKS0103: unknown key `wait`"),
        ("services:\n  - name: a\n    endpoints: [{weight: 5}]\n", "3:17: LKS0105: the key `address` is missing"),
        ("services:\n  - name: a\n    endpoints: {a: 1}\n", "3:16: LKS0106: this is a mapping, expected is a list"),
        ("services:\n  - name: a\n    endpoints: [5]\n", "3:17: LKS0106: this is `5`, expected is host:port, or a"),
        ("services:\n  - name:\n", "2:5: LKS0105: a service needs a `name`"),
        ("services: {name: a}\n", "1:11: LKS0106: this is a mapping, expected is a list"),
        ("services: [null]\n", "1:12: LKS0106: this is empty, expected is a mapping"),
        ("defaults:\n  lease: 5\n", "2:10: LKS0108: `5` is not a duration"),
        ("defaults:\n  lease: [5s]\n", "2:10: LKS0106: this is a list, expected is a text"),
        ("defaults:\n  panic_threshold: 200%\n", "2:20: LKS0108: `200%` is not a percentage"),
        ("defaults: { health: { fall: -1 } }\n", "1:29: LKS0109: this is `-1`, expected is a whole number from 0"),
        (
            "defaults: { health: { fall: often } }\n",
            "1:29: LKS0106: this is `often`, expected is a whole number from 0",
        ),
        ("defaults: { ring_hash: { load_bound: much } }\n", "1:38: LKS0108: `much` is not a percentage"),
        ("listen: { client: here }\n", "1:19: LKS0108: `here` is not an IP address and port"),
        ("defaults: { policy: fastest }\n", "1:21: LKS0107: unknown word `fastest` (known here: least_load,"),
        (
            "defaults: { policy: round-robin }\n",
            "1:21: LKS0107: unknown word `round-robin`; did you mean `round_robin`?",
        ),
        ("registration: { enabled: true, enabled: false }\n", "1:32: LKS0104: "),
        ("registration: { enabled: yes }\n", "1:26: LKS0106: this is `yes`, expected is true or false"),
        ("registration: { allow: 10.0.0.0/8 }\n", "1:24: LKS0106: this is `10.0.0.0/8`, expected is a list"),
        ("- 1\n", "1:1: LKS0106: this is a list, expected is a mapping"),
        ("a: [\n", "LKS0102: "),
    ] {
        let error = Config::parse("f.yaml", text).expect_err(text);
        let shown = error.to_string();
        assert!(error.problems.len() == 1 && shown.contains(told), "{text}: {shown}");
        assert!(shown.starts_with("f.yaml:"), "{shown}");
    }
}

#[test]
fn mistakes_of_form_are_found_together_and_hide_no_others() {
    let text = "
listn: {}
defaults:
  lease: 5
  policy: fastest
  health: { interval: 1s, deadline: 2s, rise: 0 }
  retry_budget: 200%
services:
  - name: a
    endpoints: [{ address: 'a:1', wait: 1, weight: 0 }, { address: 'a:2', weight: x }, 'b:1', 'b:1']
  - nam: b
  - 7
registration: { allow: [x], enabled: maybe }
";
    let places: Vec<_> = Config::parse("f", text).unwrap_err().problems;
    let places: Vec<_> = places.iter().map(|p| (p.at.line, p.at.column, p.code)).collect();
    let expected = [
        (2, 1, Code::UnknownKey),
        (4, 10, Code::BadValue),
        (5, 11, Code::UnknownWord),
        // That the deadline is not shorter than the interval waits until the file can be read as a whole.
        (6, 47, Code::OutOfRange),
        (7, 17, Code::BadValue),
        (10, 17, Code::OutOfRange),
        (10, 35, Code::UnknownKey),
        (10, 83, Code::WrongKind),
        (10, 95, Code::Duplicate),
        (11, 5, Code::UnknownKey),
        (12, 5, Code::WrongKind),
        (13, 25, Code::BadValue),
        (13, 38, Code::WrongKind),
    ];
    assert_eq!(places, expected, "{}", Config::parse("f", text).unwrap_err().pictures());
}

#[test]
fn numbers_are_texts_where_texts_are_wanted_as_they_were_written() {
    let text = "node: { id: 0010 }\ndata_dir: 1.50\nservices: [{ name: 12 }, { name: true }]";
    let config = Config::parse("f", text).unwrap();
    assert_eq!((config.node.id.as_str(), config.data_dir), ("0010", Some("1.50".into())));
    let names: Vec<_> = config.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["12", "true"]);
}

#[test]
fn what_stands_behind_an_anchor_is_told_where_it_is_used() {
    let text = "defaults: { slow_start: &long 48h, lease: *long }\n";
    assert_eq!(problems(text).len(), 2, "{:?}", problems(text));
    let text = "services:\n  - &a { name: a, policy: round_robin }\n  - { <<: *a, name: b }\n";
    let config = Config::parse("f", text).unwrap();
    assert_eq!(config.services[1].config.policy, PolicyKind::RoundRobin);
}

#[test]
fn a_file_full_of_mistakes_is_given_up_after_a_hundred() {
    let text: String = (0..500).map(|at| format!("key{at}: 1\n")).collect();
    assert_eq!(Config::parse("f", &text).unwrap_err().problems.len(), 100);
    let deep = "[".repeat(20_000);
    assert_eq!(Config::parse("f", &deep).unwrap_err().problems.len(), 1);
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
        ("12:5", "needs a `name`"),
        ("13:25", "0 to 32"),
        ("14:24", "connections"),
        ("14:47", "keepalive"),
        ("14:67", "drain_deadline"),
    ];
    for (place, word) in expected {
        assert!(
            found.iter().any(|p| p.starts_with(&format!("{place}: LKS")) && p.contains(word)),
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
fn a_balancer_that_runs_keeps_its_name_and_its_exposure_whatever_the_host_is_called_by_now() {
    let path = Path::new("f");
    let start = Config { node: Node { id: "lb-0".into() }, ..Config::default() };
    let origin = Origin::new(path, 0, &start);
    let again = |text: &str| file::parse("f", text, Reading::Again(&origin));
    assert_eq!(again("node: {}").unwrap().node.id, "lb-0");
    assert!(again("node: { id: lb-1 }").unwrap_err().to_string().contains("needs a restart"));
    // A flag may have allowed it, of which the file knows nothing.
    let exposed = "listen: { client: 0.0.0.0:0 }";
    let origin = Origin::new(path, 0, &file::parse("f", exposed, Reading::Start).unwrap());
    assert!(file::parse("f", exposed, Reading::Again(&origin)).is_ok());
    assert!(file::parse("f", exposed, Reading::Whole).is_err());
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

#[test]
fn a_dns_name_says_who_serves_a_service() {
    let text = "
services:
  - name: a
    dns: { name: greeter.example., port: 50051 }
  - name: b
    endpoints: [10.0.0.1:1]
    dns:
      name: _grpc._tcp.greeter.example
      type: SRV
      servers: [10.0.0.2, '[::1]:5353']
      refresh_min: 2s
      refresh_max: 10s
      locality: eu/a
      priority: 3
      tls_name: x.y
  - name: c
    dns: { name: web, type: AAAA, port: 1, weight: 7, search: true }
";
    let config = Config::parse("f", text).unwrap();
    let dns: Vec<&Dns> = config.services.iter().filter_map(|service| service.dns.as_ref()).collect();
    let port = |port| std::num::NonZeroU16::new(port).unwrap();
    let expected = Dns {
        name: "greeter.example".into(),
        records: Records::Addresses { v4: true, v6: true, port: port(50051), weight: 100 },
        servers: Vec::new(),
        search: false,
        refresh_min: Duration::from_secs(1),
        refresh_max: Duration::from_secs(30),
        locality: Locality::unknown(),
        priority: 0,
        tls_name: None,
    };
    assert_eq!(*dns[0], expected);
    let expected = Dns {
        name: "_grpc._tcp.greeter.example".into(),
        records: Records::Srv,
        servers: ["10.0.0.2:53", "[::1]:5353"].map(|server| server.parse().unwrap()).to_vec(),
        refresh_min: Duration::from_secs(2),
        refresh_max: Duration::from_secs(10),
        locality: Locality::parse("eu/a").unwrap(),
        priority: 3,
        tls_name: Some("x.y".into()),
        ..expected
    };
    assert_eq!(*dns[1], expected);
    assert_eq!(dns[2].records, Records::Addresses { v4: false, v6: true, port: port(1), weight: 7 });
    assert!(dns[2].search);
}

#[test]
fn a_dns_name_that_makes_no_sense_is_refused_with_its_reason() {
    for (dns, word) in [
        ("{ port: 1 }", "needs the `name`"),
        ("{ name: a.b }", "needs a `port`"),
        ("{ name: a.b, port: 0 }", "cannot be called"),
        ("{ name: 'a b', port: 1 }", "not a DNS name"),
        ("{ name: 10.0.0.1, port: 1 }", "not a DNS name"),
        ("{ name: a..b, port: 1 }", "not a DNS name"),
        ("{ name: a.b, type: MX }", "MX"),
        ("{ name: a.b, type: SRV, port: 1 }", "have their own"),
        ("{ name: a.b, type: SRV, weight: 1 }", "have their own"),
        ("{ name: a.b, port: 1, weight: 0 }", "1 to 10000"),
        ("{ name: a.b, port: 1, priority: 128 }", "0 to 127"),
        ("{ name: a.b, port: 1, servers: [] }", "1 to 8"),
        ("{ name: a.b, port: 1, servers: [localhost] }", "not an IP address"),
        ("{ name: a.b, port: 1, servers: [10.0.0.2, '10.0.0.2:53'] }", "twice"),
        ("{ name: a.b, port: 1, search: true, servers: [10.0.0.2] }", "search list"),
        ("{ name: a.b., port: 1, search: true }", "dot at its end"),
        ("{ name: a.b, port: 1, refresh_min: 40s }", "longer than"),
        ("{ name: a.b, port: 1, refresh_min: 1ms }", "allowed"),
    ] {
        let found = problems(&format!("services: [{{ name: s, dns: {dns} }}]"));
        assert!(found.len() == 1 && found[0].contains(word), "{dns}: {found:?}");
    }
    let found = problems("defaults: { dns: { name: a.b, port: 1 } }");
    assert!(found[0].contains("for all services"), "{found:?}");
    let long = "s".repeat(253);
    let found = problems(&format!("services: [{{ name: {long}, dns: {{ name: a.b, port: 1 }} }}]"));
    assert!(found.len() == 1 && found[0].contains("source"), "{found:?}");
}
