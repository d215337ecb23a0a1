//! What is simulated: who serves, who calls, and what goes wrong when. Read from YAML; a value of these types that came through
//! [`Scenario::parse`] can be run.

use serde::{Deserialize, Serialize};

mod builtin;
mod check;

pub use builtin::{BUILTIN, builtin};

/// A scenario with every key, what it means, and its default: a start for one's own.
pub const KEYS: &str = include_str!("scenario/keys.yaml");

/// Why a scenario cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not the YAML of a scenario.
    #[error("not a scenario: {reason}")]
    Malformed {
        /// In words, with the place.
        reason: String,
    },
    /// A value that cannot be.
    #[error("{key}: {reason}")]
    Value {
        /// Which.
        key: String,
        /// Why.
        reason: String,
    },
    /// No scenario of that name is built in.
    #[error("no scenario `{name}` is built in")]
    Unknown {
        /// The name.
        name: String,
    },
}

/// Everything about a run but the policy and the seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is called.
    pub name: String,
    /// What it shows, in a sentence.
    #[serde(default)]
    pub title: String,
    /// Who serves.
    pub endpoints: Vec<Group>,
    /// Who calls.
    pub clients: Clients,
    /// Work offered, as a share of what the endpoints present at the start can do together.
    pub load: f64,
    /// The load is multiplied from a time on.
    #[serde(default)]
    pub load_steps: Vec<LoadStep>,
    /// Mean work of a call on a core of speed 1: the unit of all results.
    #[serde(default = "default::service_time_us_mean")]
    pub service_time_us_mean: u64,
    /// How the work of calls is distributed around that mean.
    #[serde(default)]
    pub size: Size,
    /// One way between a client and an endpoint.
    #[serde(default = "default::network_us")]
    pub network_us: u64,
    /// How long an asked endpoint is waited for by those that have no rule of their own for that.
    #[serde(default = "default::probe_timeout_us")]
    pub probe_timeout_us: u64,
    /// The balancer and the ways to and from it.
    #[serde(default)]
    pub balancer: Balancer,
    /// Attempts and their time.
    #[serde(default)]
    pub retries: Retries,
    /// Time before anything is measured.
    #[serde(default = "default::warm_up_ms")]
    pub warm_up_ms: u64,
    /// Time over which is measured.
    #[serde(default = "default::measured_ms")]
    pub measured_ms: u64,
    /// Stretches of the measured time that are measured by themselves as well.
    #[serde(default)]
    pub windows: Vec<Window>,
    /// Utilisations and shares are taken over stretches this long, or over the measured time where that is shorter.
    #[serde(default = "default::share_window_ms")]
    pub share_window_ms: u64,
    /// What goes wrong, and what changes.
    #[serde(default)]
    pub faults: Vec<Fault>,
}

/// Endpoints that are alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What faults call it.
    #[serde(default = "default::group")]
    pub name: String,
    /// How many.
    pub count: u32,
    /// How calls share one endpoint.
    #[serde(default)]
    pub model: Model,
    /// Calls that it serves at full speed at a time.
    #[serde(default = "default::cores")]
    pub cores: u32,
    /// How fast one of these is.
    #[serde(default = "default::speed")]
    pub speed: f64,
    /// Calls that may wait, for `fcfs`; beyond that a call is refused as overload.
    #[serde(default = "default::queue_max")]
    pub queue_max: u32,
    /// Where they run, as region/zone.
    #[serde(default)]
    pub zone: String,
}

/// How calls share one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// All are served at once and share the cores evenly; none gets more than one.
    #[default]
    Ps,
    /// As many as there are cores are served, the others wait in turn.
    Fcfs,
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clients {
    /// How many.
    pub count: u32,
    /// The n-th calls n^-z as often as the first; 0 for all alike.
    #[serde(default)]
    pub zipf: f64,
    /// Where they run; empty for unknown.
    #[serde(default)]
    pub zones: Vec<ZoneShare>,
}

/// A share of the clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZoneShare {
    /// Where, as region/zone.
    pub zone: String,
    /// Hundredths of the clients.
    pub percent: u32,
}

/// From a time on the load is another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadStep {
    /// When, after the end of the warm-up.
    pub at_ms: u64,
    /// The load of the scenario times this.
    pub factor: f64,
}

/// How the work of calls is distributed around the mean.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Size {
    /// Without memory.
    #[default]
    Exponential,
    /// All alike.
    Fixed,
    /// Heavy to the right.
    Lognormal {
        /// Standard deviation over mean.
        cv: f64,
    },
    /// Short ones, and a few that are long.
    Bimodal {
        /// Thousandths that are long.
        long_permille: u32,
        /// How much longer these are.
        factor: f64,
    },
    /// Normal with the standard deviation of its mean, cut at 0, as the load of the Prequal paper.
    TruncatedNormal,
}

/// The balancer, and the ways to and from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Balancer {
    /// From an endpoint or a client to the balancer.
    pub report_delay_us: u64,
    /// From the balancer to a client.
    pub push_delay_us: u64,
    /// Each of these takes up to so much longer.
    pub jitter_us: u64,
    /// Reports that get lost, thousandths.
    pub report_loss_permille: u32,
    /// How long a new endpoint takes to its full share.
    pub slow_start_ms: u64,
    /// The most endpoints one client gets to see; 0 for all.
    pub subset_size: u32,
    /// Clients prefer endpoints of their own zone.
    pub prefer_zone: bool,
}

/// Attempts and their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retries {
    /// Attempts that a call may take, the first included.
    pub attempts: u32,
    /// After this an attempt is given up; 0 for never.
    pub timeout_ms: u64,
    /// Whether an endpoint stops to work on what was given up.
    pub cancels: bool,
}

/// A stretch of the measured time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// What it is called.
    pub name: String,
    /// Begin, after the end of the warm-up.
    pub from_ms: u64,
    /// End, after the end of the warm-up.
    pub until_ms: u64,
}

/// Something that goes wrong or changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// To whom; not for those of the balancer.
    #[serde(default)]
    pub endpoints: Which,
    /// When, after the end of the warm-up; below 0 is within it, and what is before the start holds from there.
    #[serde(default)]
    pub at_ms: i64,
    /// For how long; 0 for good.
    #[serde(default)]
    pub for_ms: u64,
}

/// Some endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Which {
    /// Of this group; empty for the first.
    pub group: String,
    /// From this one of it on.
    pub first: u32,
    /// So many; 0 for all from there on.
    pub count: u32,
}

/// What goes wrong or changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// Stands still, as in a collection of garbage, and answers nobody meanwhile.
    Pause,
    /// Stands still again and again, each endpoint in its own time.
    Pauses {
        /// Between the beginnings of two.
        every_ms: u64,
        /// How long each takes.
        pause_ms: u64,
    },
    /// Is slowed down by a neighbour again and again, each endpoint in its own time.
    Antagonist {
        /// How long at a time.
        on_ms: u64,
        /// How long not.
        off_ms: u64,
        /// Its speed meanwhile, times this.
        speed_factor: f64,
    },
    /// Is cold: so many times slower.
    Cold {
        /// How many times.
        factor: f64,
    },
    /// Fails every call at once, passes every check, and seems idle.
    FastFail {
        /// Time a call takes to fail there.
        after_us: u64,
    },
    /// Fails every call after a while, passes every check.
    SlowFail {
        /// Time a call takes to fail there.
        after_us: u64,
    },
    /// Fails some of its calls at once and serves the others.
    Partial {
        /// How many, thousandths.
        permille: u32,
    },
    /// Says that it is idle, whatever it has to do.
    Lie,
    /// Is not there before this time.
    Join,
    /// Says that it leaves, finishes what it has, and is gone; comes back anew at the end, where there is one.
    Leave,
    /// Is gone without a word; comes back anew at the end, where there is one.
    Crash,
    /// The balancer is gone; at the end, where there is one, it starts anew and knows nothing.
    BalancerDown,
}

mod default {
    pub(super) fn service_time_us_mean() -> u64 {
        50_000
    }

    /// 0.025 service times: a data centre.
    pub(super) fn network_us() -> u64 {
        1_250
    }

    pub(super) fn probe_timeout_us() -> u64 {
        5_000
    }

    pub(super) fn warm_up_ms() -> u64 {
        60_000
    }

    pub(super) fn measured_ms() -> u64 {
        60_000
    }

    /// 1,200 service times.
    pub(super) fn share_window_ms() -> u64 {
        60_000
    }

    pub(super) fn group() -> String {
        "all".to_owned()
    }

    pub(super) fn cores() -> u32 {
        4
    }

    pub(super) fn speed() -> f64 {
        1.0
    }

    pub(super) fn queue_max() -> u32 {
        1_000
    }
}

impl Default for Balancer {
    fn default() -> Self {
        Self {
            report_delay_us: default::network_us(),
            push_delay_us: default::network_us(),
            jitter_us: default::network_us(),
            report_loss_permille: 0,
            slow_start_ms: 30_000,
            subset_size: 100,
            prefer_zone: false,
        }
    }
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts: 1, timeout_ms: 0, cancels: true }
    }
}

impl Which {
    fn is_of(&self, group: &Group) -> bool {
        self.group.is_empty() || group.name == self.group
    }
}

/// What the reader of YAML adds to its word on a key that is there twice.
const REMEDY: &str = ", set DuplicateKeyPolicy in Options if acceptable";

impl Scenario {
    /// Reads a scenario and checks it.
    pub fn parse(yaml: &str) -> Result<Self, Error> {
        let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
        let scenario: Self = serde_saphyr::from_str_with_options(yaml, options)
            // What its library could be told to do about it is no use to whoever wrote the file.
            .map_err(|error| Error::Malformed { reason: error.to_string().replace(REMEDY, "") })?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Endpoints there are, those included that join later.
    pub fn endpoints_count(&self) -> u32 {
        self.endpoints.iter().fold(0, |sum, group| sum.saturating_add(group.count))
    }

    /// The group and its endpoints' numbers, as results count them: groups one after the other.
    pub fn groups(&self) -> impl Iterator<Item = (&Group, std::ops::Range<u32>)> {
        self.endpoints.iter().scan(0, |next, group| {
            let first = *next;
            *next += group.count;
            Some((group, first..*next))
        })
    }

    fn group(&self, which: &Which) -> Option<&Group> {
        self.endpoints.iter().find(|group| which.is_of(group))
    }

    /// The numbers of some endpoints; empty where there are none such.
    pub fn numbers(&self, which: &Which) -> std::ops::Range<u32> {
        let Some((_, all)) = self.groups().find(|(group, _)| which.is_of(group)) else { return 0..0 };
        let first = (all.start + which.first).min(all.end);
        let until = if which.count == 0 { all.end } else { (first + which.count).min(all.end) };
        first..until
    }

    /// When measuring begins, microseconds.
    pub fn measured_from_us(&self) -> u64 {
        self.warm_up_ms * 1_000
    }

    /// When it ends, microseconds. The run goes on for a while, for the calls that are open then.
    pub fn measured_until_us(&self) -> u64 {
        (self.warm_up_ms + self.measured_ms) * 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_scenario_can_be_run_and_has_the_name_of_its_file() {
        for (name, _) in BUILTIN {
            let scenario = builtin(name).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(scenario.name, *name);
            assert!(!scenario.title.is_empty(), "{name} has no title");
        }
        assert!(builtin("nope").unwrap_err().to_string().contains("nope"));
    }

    #[test]
    fn the_scenario_of_all_keys_has_every_key_and_its_default() {
        let keys = Scenario::parse(KEYS).unwrap();
        let least = "name: mine\nendpoints: [{ count: 100 }]\nclients: { count: 100 }\nload: 0.9";
        assert_eq!(Scenario::parse(least).as_ref(), Ok(&keys));
        for line in serde_saphyr::to_string(&keys).unwrap().lines() {
            let key = line.trim_start_matches([' ', '-']).split(':').next().unwrap();
            assert!(KEYS.contains(&format!("\n{key}:")) || KEYS.contains(&format!(" {key}:")), "{key} is not there");
        }
        // What stands in its comments is no less true.
        let kinds =
            KEYS.lines().skip_while(|line| !line.ends_with("Kinds:")).skip(1).take_while(|line| line.starts_with('#'));
        for kind in kinds.map(|line| line.trim_start_matches("#   ")) {
            let kinds = match kind.find("} }") {
                Some(end) => vec![&kind[..end + 3]],
                None => kind.split("  ").next().unwrap().split(", ").collect(),
            };
            for kind in kinds {
                let yaml = format!("{least}\nfaults: [{{ kind: {kind} }}]");
                Scenario::parse(&yaml).unwrap_or_else(|error| panic!("{kind}: {error}"));
            }
        }
        for more in [
            "load_steps: [{ at_ms: 20000, factor: 1.5 }]",
            "windows: [{ name: storm, from_ms: 20000, until_ms: 30000 }]",
            "size: { lognormal: { cv: 2.0 } }",
            "size: { bimodal: { long_permille: 10, factor: 20.0 } }",
        ] {
            Scenario::parse(&format!("{least}\n{more}")).unwrap_or_else(|error| panic!("{more}: {error}"));
            assert!(KEYS.contains(more.split_once(": ").unwrap().1), "{more}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_in_words() {
        let refused = |more: &str| {
            let yaml = format!("name: x\nendpoints: [{{ count: 2 }}]\nclients: {{ count: 1 }}\n{more}");
            Scenario::parse(&yaml).unwrap_err().to_string()
        };
        for (yaml, words) in [
            ("load: .nan", "load"),
            ("load: 0", "load: 0 is not a number from 0.001 to 10"),
            ("load: 1\nlaod: 1", "laod"),
            ("load: 1\nsize: { lognormal: { cv: -1 } }", "size.lognormal.cv"),
            ("load: 1\nfaults: [{ kind: pause, endpoints: { first: 2 } }]", "no such endpoints"),
            ("load: 1\nfaults: [{ kind: explode }]", "explode"),
            ("load: 1\nclients: { count: 1 }", "clients"),
            ("load: 1\nbalancer: { jitter_us: 1000000000000 }", "balancer.jitter_us: 1000000000000 is not a number"),
            ("load: 1\nload_steps: [{ at_ms: 70000, factor: 2 }]", "load_steps[0].at_ms: 70000 is not a number"),
            ("load: 1\nwindows: [{ name: w, from_ms: 5, until_ms: 5 }]", "windows[0].until_ms: must be after from_ms"),
            ("load: 1\nwindows: [{ name: w, from_ms: 5, until_ms: 60001 }]", "at most measured_ms, which is 60000"),
            ("load: 1\nwindows: [{ name: all, from_ms: 0, until_ms: 5 }]", "windows[0].name: `all` is"),
            (
                "load: 1\nwindows: [{ name: w, from_ms: 0, until_ms: 5 }, { name: w, from_ms: 5, until_ms: 9 }]",
                "windows[1].name: windows[0] is called `w` already",
            ),
            (
                "load: 1\nfaults: [{ kind: lie }, { kind: pause, endpoints: { count: 3 } }]",
                "faults[1].endpoints.count: 3 from 0 on are more than the 2 left of 2 in group `all`",
            ),
            (
                "load: 1\nfaults: [{ kind: pause, endpoints: { first: 1, count: 4294967295 } }]",
                "faults[0].endpoints.count",
            ),
            (
                "load: 1\nfaults: [{ kind: pause, endpoints: { group: new } }]",
                "no group is called `new`; there are all",
            ),
            ("load: 1\nfaults: [{ kind: pause, at_ms: 60000 }]", "faults[0].at_ms: 60000 is not before the end"),
            ("load: 1\nfaults: [{ kind: lie, at_ms: -60001, for_ms: 1 }]", "faults[0].for_ms: it is over before"),
            ("load: 1\nfaults: [{ kind: { cold: { factor: 0 } } }]", "faults[0].kind.cold.factor"),
        ] {
            assert!(refused(yaml).contains(words), "{yaml}: {}", refused(yaml));
            assert!(!refused(yaml).contains("Options"), "{}", refused(yaml));
        }
        let two = "name: x\nendpoints: [{ count: 2 }, { count: 2 }]\nclients: { count: 1 }\nload: 1\n";
        Scenario::parse(two).expect("names matter where somebody is named");
        let far = Scenario::parse(&two.replacen("count: 2", "count: 2, zone: a/b/c/d", 1)).unwrap_err().to_string();
        assert!(far.contains("endpoints[0].zone: `a/b/c/d` is not region/zone"), "{far}");
        let named = Scenario::parse(&format!("{two}faults: [{{ kind: pause, endpoints: {{ group: all }} }}]"));
        assert!(named.unwrap_err().to_string().contains("2 groups are called `all`; give each a name"));
    }
}
