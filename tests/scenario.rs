//! Runs `scenarios/*.txt`: a script of what happened, and after `----` what lists and explanations came of it.
//! `UPDATE=1 cargo test -p lookaside-core` rewrites the answers; the diff is what reviewers read.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::Path, sync::Arc, time::Duration};

use lookaside_core::{
    config::{Configuration, ConfiguredService, PolicyKind, ServiceConfig},
    event::{Action, Backend, CheckOutcome, Client, Event, LoadReport, Outcomes, Override, Scope},
    explain::explain,
    model::{Address, ClientId, Cohort, EndpointSpec, Instance, Locality, Peer, ServiceName, SourceId, Timestamp},
    policy::assign,
    snapshot::{ServiceSnapshot, Snapshot},
    table::Table,
};

/// Time between two turns of the table while a script waits, as in the service.
const TURN: Duration = Duration::from_millis(100);

#[test]
fn every_scenario_gives_its_answer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let (script, expected) = text.split_once("----\n").unwrap_or((&text, ""));
        let answer = Run::new().all(script);
        if answer == expected {
            continue;
        }
        if env::var_os("UPDATE").is_some() {
            fs::write(&file, format!("{script}----\n{answer}")).unwrap();
        } else {
            wrong.push(format!("{}\n-- expected\n{expected}\n-- got\n{answer}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}\nUPDATE=1 rewrites the answers", wrong.join("\n\n"));
}

/// One script under way.
struct Run {
    table: Table,
    snapshot: Snapshot,
    now: Timestamp,
    backends: BTreeMap<String, (Backend, LoadReport)>,
    /// What they serve between two reports, where a script says so: calls, and those of them that fail.
    served: BTreeMap<String, (u64, u64)>,
    /// As on disk.
    kept: String,
    starts: u64,
    words: u64,
    out: String,
}

impl Run {
    fn new() -> Self {
        Self {
            table: Table::new(7, ServiceConfig::default(), Timestamp(0)),
            snapshot: Snapshot::default(),
            now: Timestamp(0),
            backends: BTreeMap::new(),
            served: BTreeMap::new(),
            kept: String::new(),
            starts: 0,
            words: 0,
            out: String::new(),
        }
    }

    fn all(mut self, script: &str) -> String {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            self.line(line);
            self.turn();
        }
        self.out
    }

    fn turn(&mut self) {
        if let Some(snapshot) = self.table.publish(self.now) {
            self.snapshot = (*snapshot).clone();
        }
        if let Some(kept) = self.table.keep(self.now) {
            self.kept = serde_json::to_string(&kept).unwrap();
        }
    }

    /// Another start, with the words that are kept in any case; its clock begins anew.
    fn restart(&mut self, with_snapshot: bool) {
        let words = self.table.overrides(self.now);
        self.starts += 1;
        self.now = Timestamp(0);
        self.table = Table::new(7 + self.starts, ServiceConfig::default(), self.now);
        for word in words {
            self.event(Event::OverrideSet { word });
        }
        if with_snapshot && let Err(refusal) = self.table.restore(serde_json::from_str(&self.kept).unwrap(), self.now) {
            writeln!(self.out, "refused: {refusal}").unwrap();
        }
    }

    fn line(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap();
        let (pairs, names): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains('='));
        let options: BTreeMap<&str, &str> = pairs.iter().map(|pair| pair.split_once('=').unwrap()).collect();
        let all: Vec<String> = names.iter().flat_map(|name| self.expand(name)).collect();
        // Another source than the file.
        let from = options.get("from").map_or_else(source, |from| SourceId::parse(from).unwrap());
        match verb {
            // How it is balanced, and nothing of who serves it.
            "service" => {
                let config = Arc::new(config(&options));
                let services = vec![ConfiguredService { name: greeter(), config, endpoints: None }];
                self.configured(SourceId::parse("settings").unwrap(), services);
            }
            // The whole file: with the service and these endpoints, or without the service.
            "configured" => {
                let endpoints = all.iter().map(|name| spec(name, &BTreeMap::new())).collect();
                let config = Arc::new(config(&options));
                let services = vec![ConfiguredService { name: greeter(), config, endpoints: Some(endpoints) }];
                self.configured(source(), services);
            }
            "unconfigured" => self.configured(source(), Vec::new()),
            "wait" => self.wait(duration(names[0]), &[]),
            // Time passes without a turn: the balancer was stopped.
            "away" => self.now = self.now.after(duration(names[0])),
            "restart" => self.restart(true),
            "restart-without-snapshot" => self.restart(false),
            // Time passes while these keep reporting.
            "live" => self.wait(duration(names[0]), &all[1..]),
            "file" => {
                let endpoints = all.iter().map(|name| spec(name, &options)).collect();
                let detail = options.get("detail").copied().unwrap_or_default().to_owned();
                self.event(Event::EndpointsListed { source: from, service: greeter(), endpoints, detail });
            }
            "file-awaited" => self.event(Event::SourceAwaited { source: from, service: greeter() }),
            "file-dropped" => self.event(Event::SourceDropped { source: from, service: greeter() }),
            "sources-named" => self.event(Event::SourcesNamed),
            "file-fails" => self.event(Event::SourceFailed { source: from, reason: "gone".into() }),
            // From now on, in every report.
            "serves" => {
                let number = |key: &str| options.get(key).map(|value| value.parse::<u64>().unwrap());
                for name in all {
                    self.served.insert(name.clone(), (number("calls").unwrap_or(100), number("errors").unwrap_or(0)));
                    if let (Some((_, load)), Some(utilization)) = (self.backends.get_mut(&name), number("load")) {
                        load.utilization_permille = Some(utilization as u32);
                    }
                }
            }
            "explain" => self.explain(&all[0], &options),
            "pick" => self.pick(&options),
            "status" => self.status(),
            // So many clients tell of so many calls each, from a machine each unless they share a peer.
            "told" => self.told(&all, &options),
            "drain" | "undrain" | "disable" | "enable" | "weight" => self.word(verb, &all, &options),
            verb => {
                for name in all {
                    self.happens(verb, &name, &options);
                }
            }
        }
    }

    /// `a..f` is six names.
    fn expand(&self, name: &str) -> Vec<String> {
        match name.split_once("..") {
            Some((first, last)) => {
                let (first, last) = (first.as_bytes()[0], last.as_bytes()[0]);
                (first..=last).map(|letter| char::from(letter).to_string()).collect()
            }
            None => vec![name.to_owned()],
        }
    }

    fn configured(&mut self, source: SourceId, services: Vec<ConfiguredService>) {
        let configuration = Configuration { services, ..Configuration::default() };
        self.event(Event::Configured { source, configuration });
    }

    fn wait(&mut self, duration: Duration, reporting: &[String]) {
        let end = self.now.after(duration);
        let mut next_report = self.now;
        while self.now < end {
            self.now = self.now.after(TURN).min(end);
            if self.now >= next_report {
                reporting.iter().for_each(|name| self.happens("report", name, &BTreeMap::new()));
                next_report = self.now.after(Duration::from_secs(1));
            }
            self.turn();
        }
    }

    fn event(&mut self, event: Event) {
        if let Err(refusal) = self.table.apply(event, self.now) {
            writeln!(self.out, "refused: {refusal}").unwrap();
        }
    }

    fn happens(&mut self, verb: &str, name: &str, options: &BTreeMap<&str, &str>) {
        let (service, address) = (greeter(), address(name));
        let known = self.backends.get(name).cloned();
        let (backend, mut load) = known.unwrap_or_else(|| {
            let backend = Backend { service: service.clone(), address: address.clone(), incarnation: 1 };
            (backend, LoadReport::default())
        });
        let check = |outcome| Event::Checked { service: service.clone(), address: address.clone(), outcome };
        let event = match verb {
            "register" => {
                let endpoint = spec(name, options);
                let backend = Backend { incarnation: endpoint.incarnation, ..backend };
                self.backends.insert(name.to_owned(), (backend, LoadReport::default()));
                Event::Registered { service, endpoint }
            }
            "report" => {
                let number = |key: &str| options.get(key).map(|value| value.parse::<u64>().unwrap());
                load.sequence = number("sequence").unwrap_or(load.sequence + 1);
                let (calls, errors) = self.served.get(name).copied().unwrap_or((100, 0));
                load.completions += number("calls").unwrap_or(calls);
                load.errors += errors;
                load.in_flight_us += number("in_flight").unwrap_or(1) * 1_000_000;
                load.utilization_permille = match options.get("load") {
                    // Not measured, as an idle backend says.
                    Some(&"none") => None,
                    Some(load) => Some(load.parse().unwrap()),
                    None => load.utilization_permille,
                };
                self.backends.insert(name.to_owned(), (backend.clone(), load));
                Event::LoadReported { backend, load }
            }
            "ok" => check(CheckOutcome::Passed),
            "refuses" => check(CheckOutcome::Unreachable { detail: "Connection refused".into() }),
            "hangs" => check(CheckOutcome::TimedOut { deadline: Duration::from_millis(500) }),
            "not-serving" => check(CheckOutcome::NotServing),
            "leaves" => Event::DrainAnnounced { backend },
            "left" => Event::Departed { backend },
            "breaks" => Event::ReportStreamBroken { backend },
            "clients-fail" => {
                let outcomes = Outcomes { failed: 1, suspect: true, ..Outcomes::default() };
                Event::CallsEnded { client: client("web", 1), service, address, outcomes }
            }
            other => panic!("no such verb: {other}"),
        };
        self.event(event);
    }

    fn told(&mut self, names: &[String], options: &BTreeMap<&str, &str>) {
        let number = |key: &str, or: u64| options.get(key).map_or(or, |value| value.parse().unwrap());
        let first = number("client", 1);
        for name in names {
            for at in first..first + number("clients", 1) {
                let (ok, failed) = (number("ok", 0), number("failed", 0));
                let outcomes = Outcomes { ok, failed, ..Outcomes::default() };
                let zone = Locality::parse(options.get("zone").copied().unwrap_or("")).unwrap();
                let client = Client { locality: zone, ..client(&format!("web-{at}"), number("peer", at)) };
                self.event(Event::CallsEnded { client, service: greeter(), address: address(name), outcomes });
            }
        }
    }

    fn word(&mut self, verb: &str, names: &[String], options: &BTreeMap<&str, &str>) {
        let action = match verb {
            "drain" => Action::Drain,
            "undrain" => Action::Undrain,
            "disable" => Action::Disable,
            "enable" => Action::Enable,
            _ => Action::Weight(options["percent"].parse().unwrap()),
        };
        let scope = match (names.first(), options.get("zone")) {
            (Some(name), _) => Scope::Address(address(name)),
            (None, Some(zone)) => Scope::Locality(Locality::parse(zone).unwrap()),
            (None, None) => Scope::Service,
        };
        self.words += 1;
        let word = Override {
            service: greeter(),
            scope,
            action,
            reason: options.get("reason").copied().unwrap_or_default().to_owned(),
            actor: "ann".into(),
            set_at_unix_ms: options.get("set_at").map_or(self.words, |at| at.parse().unwrap()),
            replica: "lb-0".into(),
            expires_at_unix_ms: 0,
            remaining: options.get("for").map(|length| duration(length)),
        };
        let preview = self.table.preview(&word, self.now);
        if let (true, Ok(effect)) = (options.contains_key("preview"), preview) {
            let [before, after] = effect.eligible();
            writeln!(self.out, "{verb}: {before} -> {after} offered, {:?}", effect.after.mode).unwrap();
            return;
        }
        self.event(Event::OverrideSet { word });
    }

    fn service(&self) -> Option<&ServiceSnapshot> {
        self.snapshot.services.get(&greeter()).map(|service| &**service)
    }

    fn pick(&mut self, options: &BTreeMap<&str, &str>) {
        let client = ClientId::parse(options.get("client").copied().unwrap_or("1")).unwrap();
        let zone = Locality::parse(options.get("zone").copied().unwrap_or("")).unwrap();
        let mut text = format!("pick at {:.1} s", self.now.0 as f64 / 1e6);
        let Some(service) = self.service() else {
            writeln!(self.out, "{text}: unknown service").unwrap();
            return;
        };
        let list = assign(service, &Cohort::of(&client, zone));
        write!(text, ": {}", list.mode.name()).unwrap();
        text += if list.complete { "" } else { ", incomplete" };
        text += &if list.note.is_empty() { String::new() } else { format!(" ({})", list.note) };
        for (at, endpoint) in list.endpoints.iter().enumerate() {
            let name = endpoint.spec.address.host();
            write!(text, "\n  {}. {name} tier={} weight={}", at + 1, endpoint.priority, endpoint.weight).unwrap();
            // Unknown and usual are not worth a word.
            if ![0, 1000].contains(&endpoint.capacity_milli) {
                write!(text, " capacity={}", endpoint.capacity_milli).unwrap();
            }
            if endpoint.is_keyed_by_instance {
                write!(text, " key={}", endpoint.spec.instance).unwrap();
            }
            for (code, detail) in &endpoint.reasons {
                write!(text, " {}", code.name()).unwrap();
                if !detail.is_empty() {
                    write!(text, "({detail})").unwrap();
                }
            }
        }
        writeln!(self.out, "{text}").unwrap();
    }

    fn status(&mut self) {
        let line = match self.service() {
            None => "unknown service".to_owned(),
            Some(service) => {
                let states: Vec<_> =
                    service.endpoints.iter().map(|e| format!("{}={}", e.spec.address.host(), e.state.name())).collect();
                format!("{} {}", service.status().name(), states.join(" "))
            }
        };
        writeln!(self.out, "status: {line}").unwrap();
    }

    fn explain(&mut self, name: &str, options: &BTreeMap<&str, &str>) {
        let zone = Locality::parse(options.get("zone").copied().unwrap_or("")).unwrap();
        let cohort = Cohort::of(&ClientId::parse("1").unwrap(), zone);
        let Some(service) = self.service() else { return };
        let explanation = explain(service, &self.snapshot.sources, &cohort, &address(name), self.now);
        let mut text = format!("explain {name}: {}\n", explanation.result);
        for stage in explanation.stages {
            let codes: Vec<_> = stage.reasons.iter().map(|reason| reason.code.name()).collect();
            writeln!(text, "  {:?} {} {} [{}]", stage.verdict, stage.name, codes.join(" "), stage.detail).unwrap();
        }
        for next in explanation.next {
            writeln!(text, "  next: {next}").unwrap();
        }
        self.out += &text;
    }
}

fn config(options: &BTreeMap<&str, &str>) -> ServiceConfig {
    let mut config = ServiceConfig::default();
    for (key, value) in options {
        match *key {
            "policy" => config.policy = PolicyKind::ALL.into_iter().find(|p| p.name() == *value).unwrap(),
            "prefer_zone" => config.locality.prefer_zone = *value == "yes",
            "subset" => config.subset_size = value.parse().unwrap(),
            "slow_start" => config.slow_start = duration(value),
            "panic" => config.panic_threshold_percent = value.parse().unwrap(),
            other => panic!("service has no option {other}"),
        }
    }
    config
}

fn greeter() -> ServiceName {
    ServiceName::parse("greeter").unwrap()
}

fn source() -> SourceId {
    SourceId::parse("file").unwrap()
}

fn address(name: &str) -> Address {
    Address::parse(&format!("{name}:1")).unwrap()
}

fn client(name: &str, peer: u64) -> Client {
    Client { id: ClientId::parse(name).unwrap(), peer: Peer(peer), locality: Locality::unknown() }
}

fn spec(name: &str, options: &BTreeMap<&str, &str>) -> EndpointSpec {
    let number = |key: &str, or: u64| options.get(key).map_or(or, |value| value.parse().unwrap());
    EndpointSpec {
        instance: Instance::parse(options.get("instance").copied().unwrap_or(name)).unwrap(),
        incarnation: number("incarnation", 1),
        locality: Locality::parse(options.get("zone").copied().unwrap_or("")).unwrap(),
        priority: number("priority", 0) as u32,
        weight: number("weight", 100) as u32,
        ..EndpointSpec::at(address(name))
    }
}

fn duration(text: &str) -> Duration {
    match text.strip_suffix("ms") {
        Some(ms) => Duration::from_millis(ms.parse().unwrap()),
        None => Duration::from_secs(text.strip_suffix('s').unwrap().parse().unwrap()),
    }
}
