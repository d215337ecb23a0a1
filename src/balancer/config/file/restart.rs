//! What a running balancer keeps from its start: its addresses are known, its name signs words that are kept, and room
//! that was given out is not taken back. A file that says otherwise is refused whole.

use std::path::PathBuf;

use super::Form;
use crate::config::{Config, Origin, file::Problems, problem::Code, value::Maybe};

/// Finds what would need another start.
pub(super) fn check(form: &Form, config: &Config, running: &Origin, problems: &mut Problems) {
    fn at<T>(from: &Maybe<T>) -> crate::config::Location {
        from.as_ref().map(|from| from.referenced).unwrap_or_default()
    }
    let dir = |dir: &Option<PathBuf>| dir.as_ref().map_or("none".to_owned(), |dir| dir.display().to_string());
    let (new, old) = (&config.listen, &running.listen);
    let listeners = [
        ("listen.client", at(&form.listen.client), old.client, new.client),
        ("listen.admin", at(&form.listen.admin), old.admin, new.admin),
        ("listen.metrics", at(&form.listen.metrics), old.metrics, new.metrics),
    ];
    let listeners = listeners.map(|(key, at, old, new)| (key, at, old.to_string(), new.to_string()));
    let (new, old) = (&config.limits, &running.limits);
    let limits = [
        ("limits.connections", at(&form.limits.connections), old.connections, new.connections),
        (
            "limits.connections_per_peer",
            at(&form.limits.connections_per_peer),
            old.connections_per_peer,
            new.connections_per_peer,
        ),
        ("limits.checks_at_once", at(&form.limits.checks_at_once), old.checks_at_once, new.checks_at_once),
    ];
    let limits = limits.map(|(key, at, old, new)| (key, at, old.to_string(), new.to_string()));
    let others = [
        ("node.id", at(&form.node.id), running.node.id.clone(), config.node.id.clone()),
        ("data_dir", at(&form.data_dir), dir(&running.data_dir), dir(&config.data_dir)),
    ];
    // What is in the files that these name may change at any time.
    let secured = config.security.told().into_iter().zip(running.security.told());
    let secured = secured.map(|((key, new), (_, old))| (key, crate::config::Location::default(), old, new));
    for (key, at, old, new) in listeners.into_iter().chain(limits).chain(others).chain(secured) {
        if old != new {
            let reason = format!("{key} is now {new} and was {old}: that needs a restart of the balancer");
            problems.add(at, Code::NeedsRestart, reason);
        }
    }
}
