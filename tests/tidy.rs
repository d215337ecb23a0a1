//! The rules of the house that no compiler checks: who may import whom, how long a file may be, which words public names
//! are made of, and that nothing stands there undocumented, unlisted or unfinished. `cargo tidy` runs it.
//!
//! A rule that is in the way is changed here and in `src/README.md`, in a change of its own; it is not worked around.

#![allow(clippy::unwrap_used, reason = "a test suite: what cannot be is a failed test")]

use std::collections::BTreeSet;

#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/house.rs"]
mod house;
#[path = "tidy/limits.rs"]
mod limits;
#[path = "tidy/source.rs"]
mod source;

use documents::{
    configuration_keys_are_documented, decision_notes_have_their_parts, documents_name_files_that_are_there,
    metrics_are_declared_counted_and_documented,
};
use house::House;
use limits::limits_are_reached;
use source::{Source, words_of};

/// Lines a file may have, tests apart. Beyond it a file does more than one thing.
const FILE_LINES_MAX: usize = 500;

/// Lines of tests at the foot of a file; beyond it they move to a file of their own.
const TESTS_LINES_MAX: usize = 150;

/// Workspace crates that each crate may use outside its tests. Cargo lets no crate use what its Cargo.toml does not name.
const CRATES: [(&str, &[&str]); 9] = [
    ("proto", &[]),
    ("src/core", &[]),
    ("src/tls", &[]),
    ("src/balancer", &["core", "tls", "proto"]),
    ("client-sdk", &["tls", "proto"]),
    ("src/sim", &["core", "sdk"]),
    ("src/load", &["sdk", "proto"]),
    ("src/cli", &["balancer", "sim", "load", "sdk", "tls", "proto"]),
    ("tests", &["core", "balancer", "sim", "load", "sdk", "tls", "proto"]),
];

/// Within a crate: files under the first are not to name anything under the others. The table lists modules.
const ROOMS: [(&str, &str, &[&str]); 12] = [
    ("src/core", "table", &["policy", "explain", "decision"]),
    ("src/core", "policy", &["table", "event", "explain", "decision"]),
    ("src/core", "model", &["table", "policy", "snapshot", "event", "explain", "decision"]),
    ("src/core", "snapshot", &["table", "policy", "explain", "decision"]),
    ("src/balancer", "source", &["signal", "frontend", "admin"]),
    ("src/balancer", "signal", &["source", "frontend", "admin"]),
    ("src/balancer", "frontend", &["source", "signal", "admin"]),
    ("src/balancer", "admin", &["source", "signal"]),
    ("src/balancer", "driver", &["source", "signal", "frontend", "admin"]),
    ("src/balancer", "store", &["source", "signal", "frontend", "admin"]),
    ("src/balancer", "convert", &["source", "signal", "frontend", "admin", "driver"]),
    ("src/balancer", "config", &["source", "signal", "frontend", "admin", "driver"]),
];

/// Words that are not ours, and what we say instead. A public name is made of ours.
const GLOSSARY: [(&str, &str); 25] = [
    ("cluster", "service"),
    ("app", "service"),
    ("node", "endpoint"),
    ("server", "endpoint or balancer"),
    ("datacenter", "locality"),
    ("site", "locality"),
    ("level", "priority"),
    ("score", "weight"),
    ("alive", "health"),
    ("stats", "load"),
    ("provider", "source"),
    ("collector", "signal"),
    ("member", "peer"),
    ("shard", "subset"),
    ("slice", "subset"),
    ("route", "pick"),
    ("select", "pick"),
    ("ban", "ejection"),
    ("banned", "ejected"),
    ("blacklist", "ejection"),
    ("whitelist", "allow"),
    ("dead", "stale"),
    ("ttl", "lease"),
    ("upstream", "endpoint"),
    ("downstream", "client"),
];

/// Public names that may hold such a word, and why.
const GLOSSARY_EXCEPTIONS: [(&str, &str); 4] = [
    ("Node", "the key `node` of the configuration: this balancer among its replicas"),
    ("node", "likewise"),
    ("into_server", "tonic's word for what serves a gRPC service"),
    ("Level", "of logs"),
];

#[test]
fn every_rule_of_the_house_is_kept() {
    let house = House::read();
    let rules: [fn(&House) -> Vec<String>; 15] = [
        crates_use_only_crates_they_may,
        rooms_do_not_know_each_other,
        the_picker_stands_on_std_alone,
        files_are_short,
        modules_open_with_prose,
        every_file_is_part_of_a_crate,
        public_names_are_of_the_glossary,
        metrics_are_declared_counted_and_documented,
        configuration_keys_are_documented,
        suites_are_listed,
        limits_are_reached,
        nothing_is_unfinished,
        tests_wait_for_conditions,
        documents_name_files_that_are_there,
        decision_notes_have_their_parts,
    ];
    let breaches: Vec<String> = rules.iter().flat_map(|rule| rule(&house)).collect();
    assert!(breaches.is_empty(), "{} rules broken:\n{}", breaches.len(), breaches.join("\n"));
}

/// Crates that a manifest names in a section, without those for tests and builds.
fn dependencies(manifest: &str) -> Vec<(usize, String)> {
    let mut section = String::new();
    let mut names = Vec::new();
    for (at, line) in manifest.lines().enumerate() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']').to_owned();
            names.extend(section.strip_prefix("dependencies.").map(|name| (at + 1, name.to_owned())));
        } else if section == "dependencies" {
            let name: String = line.chars().take_while(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
            names.extend(Some(name).filter(|name| !name.is_empty()).map(|name| (at + 1, name)));
        }
    }
    names
}

fn crates_use_only_crates_they_may(house: &House) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut binaries = Vec::new();
    for (path, manifest) in &house.manifests {
        let folder = path.trim_end_matches("Cargo.toml").trim_end_matches('/');
        binaries.extend(manifest.matches("[[bin]]").map(|_| path.as_str()));
        if folder.is_empty() {
            continue;
        }
        let Some((_, allowed)) = CRATES.iter().find(|(known, _)| *known == folder) else {
            breaches.push(format!("{path}:1: a crate that the table of crates in tests/tidy.rs does not know"));
            continue;
        };
        for (line, name) in dependencies(manifest) {
            let ours = name.strip_prefix("lookaside-");
            if ours.is_some_and(|ours| !allowed.contains(&ours)) {
                breaches.push(format!("{path}:{line}: {folder} may not use {name}"));
            }
            if folder == "src/core" && !["serde", "thiserror"].contains(&name.as_str()) {
                breaches
                    .push(format!("{path}:{line}: the core stands on std, serde and thiserror alone, not on {name}"));
            }
            if name == "anyhow" && folder != "src/cli" {
                breaches.push(format!("{path}:{line}: anyhow is for src/cli alone; elsewhere errors have types"));
            }
        }
    }
    if binaries != ["src/cli/Cargo.toml"] {
        breaches.push(format!("Cargo.toml: one [[bin]] in the workspace, that of src/cli, not {binaries:?}"));
    }
    breaches
}

fn rooms_do_not_know_each_other(house: &House) -> Vec<String> {
    let mut breaches = Vec::new();
    for (of, room, others) in ROOMS {
        let inside = |file: &&Source| file.module().first().is_some_and(|first| first == room);
        for file in house.within(&format!("{of}/")).filter(inside) {
            for (line, path) in file.paths() {
                let to = path.strip_prefix("crate::").and_then(|rest| rest.split("::").next()).unwrap_or("");
                if others.contains(&to) {
                    breaches.push(format!("{}:{line}: in {of}, `{room}` may not know `{to}` ({path})", file.path));
                }
            }
        }
    }
    breaches
}

fn the_picker_stands_on_std_alone(house: &House) -> Vec<String> {
    let files: Vec<&Source> = house.within("client-sdk/src/picker").collect();
    let modules: BTreeSet<String> = files.iter().filter_map(|file| file.module().pop()).collect();
    let mut breaches = Vec::new();
    for file in files {
        for (line, path) in file.paths() {
            let first = path.split("::").next().unwrap_or("");
            let ours = path.starts_with("crate::picker") || modules.contains(first);
            if !ours && !["std", "core"].contains(&first) && !first.is_empty() {
                breaches.push(format!("{}:{line}: the picker stands on std alone, not on {path}", file.path));
            }
        }
    }
    breaches
}

fn files_are_short(house: &House) -> Vec<String> {
    let mut breaches = Vec::new();
    for file in house.rust.iter().filter(|file| !file.path.ends_with("/tests.rs")) {
        let (lines, tests) = (file.tests_at, file.code.len() - file.tests_at);
        if lines > FILE_LINES_MAX {
            breaches.push(format!("{}:{lines}: {lines} lines, at most {FILE_LINES_MAX} without tests", file.path));
        }
        if tests > TESTS_LINES_MAX {
            breaches.push(format!(
                "{}:{}: {tests} lines of tests, past {TESTS_LINES_MAX} they move to a file of their own",
                file.path,
                lines + 1
            ));
        }
    }
    breaches
}

fn modules_open_with_prose(house: &House) -> Vec<String> {
    let mut breaches = Vec::new();
    for file in &house.rust {
        if file.path.ends_with("/mod.rs") {
            breaches.push(format!("{}:1: module `x` is `x.rs`; there is no mod.rs", file.path));
        }
        let is_prose = |line: &str| line.strip_prefix("//! ").is_some_and(|prose| prose.len() >= 20);
        if !file.path.ends_with("/tests.rs") && !file.text.lines().next().is_some_and(is_prose) {
            breaches.push(format!("{}:1: a file opens with `//!` prose: what it is for, what it refuses", file.path));
        }
    }
    breaches
}

fn every_file_is_part_of_a_crate(house: &House) -> Vec<String> {
    let mut breaches = Vec::new();
    for file in house.rust.iter().filter(|file| !file.path.starts_with("tests/")) {
        let module = file.module();
        let Some((name, outer)) = module.split_last() else { continue };
        if file.path.contains("/examples/") || file.path.contains("/benches/") {
            continue;
        }
        let depth = module.join("/").len() + ".rs".len();
        let root = &file.path[..file.path.len() - depth];
        let parents: Vec<String> = match outer.join("/") {
            none if none.is_empty() => vec![format!("{root}lib.rs"), format!("{root}main.rs")],
            outer => vec![format!("{root}{outer}.rs")],
        };
        let declares = |parent: &&Source| {
            let declared = format!("mod {name};");
            parents.contains(&parent.path) && parent.code.iter().any(|line| line.trim_end().ends_with(&declared))
        };
        if house.rust.iter().find(declares).is_none() {
            breaches.push(format!("{}:1: no `mod {name};` in {}: it is not compiled", file.path, parents.join(" or ")));
        }
    }
    breaches
}

fn public_names_are_of_the_glossary(house: &House) -> Vec<String> {
    let mut breaches = Vec::new();
    for file in house.rust.iter().filter(|file| !file.path.starts_with("tests/")) {
        for (line, name) in file.public_names() {
            if GLOSSARY_EXCEPTIONS.iter().any(|(excepted, _)| *excepted == name) {
                continue;
            }
            for word in words(&name) {
                if let Some((_, ours)) = GLOSSARY.iter().find(|(theirs, _)| *theirs == word) {
                    breaches.push(format!("{}:{line}: `{name}`: we do not say {word}, we say {ours}", file.path));
                }
            }
        }
    }
    breaches
}

/// `TtlMs`, `ttl_ms` and `TTL_MS` as `ttl`, `ms`.
fn words(name: &str) -> Vec<String> {
    let mut spread = String::new();
    let mut small_before = false;
    for c in name.chars() {
        if c.is_uppercase() && small_before {
            spread.push('_');
        }
        small_before = c.is_lowercase();
        spread.extend(c.to_lowercase());
    }
    spread.split('_').map(str::to_owned).collect()
}

fn suites_are_listed(house: &House) -> Vec<String> {
    let mut breaches = Vec::new();
    let listed: String =
        house.manifests.values().flat_map(|manifest| manifest.lines()).fold(String::new(), |all, line| {
            let path = line.strip_prefix("path = \"").map(|path| path.trim_start_matches("../").trim_end_matches('"'));
            all + path.unwrap_or("") + "\n"
        });
    for file in house.within("tests/").filter(|file| file.path != "tests/lib.rs") {
        let name = file.path.trim_start_matches("tests/");
        let is_suite = !name.contains('/') || (name.starts_with("e2e/") && name.matches('/').count() == 1);
        if is_suite && !listed.lines().any(|path| path.trim_start_matches("tests/") == name) {
            breaches.push(format!("{}:1: no [[test]] of any Cargo.toml names this suite: it never runs", file.path));
        }
    }
    breaches
}

fn nothing_is_unfinished(house: &House) -> Vec<String> {
    let mut breaches = Vec::new();
    // In pieces, since this file is looked at as well.
    let in_code =
        [["todo", "!("], ["unimplemented", "!("], ["#[ign", "ore"], ["allow(dead", "_code"], ["allow(unu", "sed"]];
    for file in &house.rust {
        for (at, (code, text)) in file.code.iter().zip(file.text.lines()).enumerate() {
            let found = in_code.iter().map(|parts| parts.concat()).find(|word| code.contains(word));
            let fix_me = ["FIX", "ME"].concat();
            let to_do = text.contains(&["TO", "DO"].concat()) && !text.contains(&["TO", "DO(#"].concat());
            // What takes minutes has a place of its own, and says how it is run.
            let is_long = file.path == "tests/e2e/long.rs" && text.contains("minutes: cargo long");
            if let Some(word) = found.filter(|_| !is_long) {
                breaches.push(format!("{}:{}: `{word}` has no place here", file.path, at + 1));
            } else if text.contains(&fix_me) || to_do {
                breaches.push(format!("{}:{}: what is left to do has the number of an issue", file.path, at + 1));
            }
        }
    }
    breaches
}

/// A test that sleeps instead of waiting for something is slow when it passes and flaky when it fails. A pause has its place
/// in a loop that looks again, in a future that paces load, and where the clock of the test is virtual.
fn tests_wait_for_conditions(house: &House) -> Vec<String> {
    let mut breaches = Vec::new();
    for file in &house.rust {
        let mut above: Vec<&str> = Vec::new();
        for (number, line) in file.tests() {
            let length = line.split("sleep(").nth(1).map(|rest| rest.trim_start_matches("Duration::from_"));
            let length = length.map(|rest| rest.trim_start_matches(|c: char| c.is_lowercase()).trim_start_matches('('));
            // What is not computed was guessed.
            let is_guess =
                length.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || c.is_uppercase()));
            if is_guess && pauses_a_whole_function(&above, line) {
                breaches.push(format!(
                    "{}:{number}: a test waits for a condition, with a deadline; it never sleeps",
                    file.path
                ));
            }
            above.push(line);
        }
    }
    breaches
}

/// Whether nothing but conditions stands between a line and the head of its function, and time there is real.
fn pauses_a_whole_function(above: &[&str], line: &str) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut depth = indent(line);
    for (at, outer) in above.iter().enumerate().rev() {
        if outer.trim().is_empty() || indent(outer) >= depth {
            continue;
        }
        depth = indent(outer);
        if words_of(outer).any(|word| word == "fn") {
            let attributes = above[..at].iter().rev().take_while(|line| line.trim_start().starts_with('#'));
            return !attributes.into_iter().any(|line| line.contains("start_paused = true"));
        }
        if words_of(outer).any(|word| ["loop", "while", "for", "async"].contains(&word)) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fall_into_words() {
        assert_eq!(words("EndpointTtlMs"), ["endpoint", "ttl", "ms"]);
        assert_eq!(words("SERVER_LIST_MAX"), ["server", "list", "max"]);
    }

    #[test]
    fn a_pause_is_told_from_sleeping() {
        let sleep = "        sleep(Duration::from_millis(5)).await;";
        assert!(pauses_a_whole_function(&["#[tokio::test]", "async fn f() {", "    if x {"], sleep));
        assert!(!pauses_a_whole_function(&["#[tokio::test]", "async fn f() {", "    while !x() {"], sleep));
        assert!(!pauses_a_whole_function(
            &["#[tokio::test(start_paused = true)]", "async fn f() {", "    if x {"],
            sleep
        ));
    }

    #[test]
    fn dependencies_for_tests_do_not_count() {
        let manifest =
            "[dependencies]\na.workspace = true\nb = { x = 1 }\n[dev-dependencies]\nc = \"1\"\n[dependencies.d]\n";
        let names: Vec<String> = dependencies(manifest).into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["a", "b", "d"]);
    }
}
