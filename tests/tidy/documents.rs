//! Rules on what is written for people: metrics, configuration keys, documents and decision notes.

use std::collections::BTreeSet;

use crate::{
    house::House,
    source::{Source, words_of},
};

/// Every metric has a meaning, is counted somewhere, and is declared in one place.
pub(crate) fn metrics_are_declared_counted_and_documented(house: &House) -> Vec<String> {
    let declared = house.file("src/balancer/telemetry.rs");
    let mut breaches = Vec::new();
    for (at, line) in declared.text.lines().enumerate().take(declared.tests_at) {
        let quoted: Vec<&str> = line.split('"').collect();
        let [head, name, _, help, _] = quoted.as_slice() else { continue };
        let Some(constant) = head.split_whitespace().next().filter(|_| name.starts_with("lookaside_")) else {
            continue;
        };
        let place = format!("{}:{}", declared.path, at + 1);
        if help.len() < 5 {
            breaches.push(format!("{place}: metric {name} says not what it means"));
        }
        let counts = |file: &&Source| {
            file.path != declared.path && file.product().any(|(_, line)| words_of(line).any(|word| word == constant))
        };
        if house.within("src/balancer/").find(counts).is_none() {
            breaches.push(format!("{place}: metric {name} is declared, and nothing counts it"));
        }
    }
    for file in house.within("src/balancer/").filter(|file| file.path != declared.path) {
        for (line, code) in file.product() {
            let text = file.text.lines().nth(line - 1).unwrap_or("");
            if text.contains("\"lookaside_") {
                breaches.push(format!("{}:{line}: metrics are declared in {} alone", file.path, declared.path));
            }
            let labels = ["endpoint", "client", "client_id", "address"].map(|label| format!("\"{label}\" =>"));
            if code.contains("=>") && labels.iter().any(|label| text.contains(label)) {
                breaches.push(format!("{}:{line}: a label is never an endpoint or a client", file.path));
            }
        }
    }
    breaches
}

/// The fields of the forms that the configuration file is read into are its keys.
pub(crate) fn configuration_keys_are_documented(house: &House) -> Vec<String> {
    let key = |line: &str| {
        let line = line.trim_start_matches([' ', '#', '-']);
        line.split_once(':').map(|(key, _)| key.trim().to_owned())
    };
    let documented: BTreeSet<String> = house.yaml.lines().filter_map(key).collect();
    let mut breaches = Vec::new();
    for file in house.within("src/balancer/config/") {
        let mut of_a_form = false;
        for (number, line) in file.product() {
            match line.trim() {
                line if line.starts_with("#[derive(") => of_a_form = words_of(line).any(|word| word == "Deserialize"),
                "}" => of_a_form = false,
                line => {
                    let field = line.split_once(": ").map(|(name, _)| name.trim_start_matches("pub(super) "));
                    let is_name = |name: &&str| name.chars().all(|c| c.is_lowercase() || c == '_');
                    if let Some(field) = field.filter(|_| of_a_form).filter(is_name)
                        && !documented.contains(field)
                    {
                        breaches.push(format!("{}:{number}: key `{field}` is not in deploy/lookaside.yaml", file.path));
                    }
                }
            }
        }
    }
    breaches
}

/// Files that documents name in backquotes are there; a path may begin at any folder.
pub(crate) fn documents_name_files_that_are_there(house: &House) -> Vec<String> {
    let mut breaches = Vec::new();
    for (path, document) in &house.documents {
        for (at, line) in document.lines().enumerate() {
            for name in line.split('`').skip(1).step_by(2) {
                let is_file = [".rs", ".proto", ".yaml", ".toml", ".txt", ".md"].iter().any(|end| name.ends_with(end))
                    && name.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
                let is_there = |file: &String| file == name || file.ends_with(&format!("/{name}"));
                if is_file && name.contains('/') && !name.starts_with("x/") && !house.files.iter().any(is_there) {
                    breaches.push(format!("{path}:{}: there is no {name}", at + 1));
                }
            }
        }
    }
    breaches
}

/// Problem, choice, cost.
pub(crate) fn decision_notes_have_their_parts(house: &House) -> Vec<String> {
    let mut breaches = Vec::new();
    for (path, note) in house.documents.iter().filter(|(path, _)| path.starts_with("src/decisions/")) {
        for part in ["## Problem", "## Choice", "## Cost"] {
            if !note.lines().any(|line| line == part) {
                breaches.push(format!("{path}:1: a decision note has a part `{part}`"));
            }
        }
    }
    breaches
}
