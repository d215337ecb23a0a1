//! What `ring_hash` goes by, as the file has it.

use lookaside_core::config::{HeaderName, LOAD_BOUND_PERCENT_MAX, LOAD_BOUND_PERCENT_MIN, RingConfig};
use serde::Deserialize;

use super::Problems;
use crate::config::{
    problem::Code,
    value::{Maybe, Ratio},
};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RingForm {
    header: Maybe<String>,
    load_bound: Maybe<Ratio>,
}

impl RingForm {
    pub(super) fn fill(&self, ring: &mut RingConfig, problems: &mut Problems) {
        if let Some(header) = &self.header {
            ring.header = match header.value.as_str() {
                "" => None,
                name => problems.parsed(header.referenced, HeaderName::parse(name)),
            };
        }
        if let Some(bound) = &self.load_bound {
            let percent = bound.value.0;
            if percent != 0 && !(LOAD_BOUND_PERCENT_MIN..=LOAD_BOUND_PERCENT_MAX).contains(&percent) {
                problems.add(
                    bound.referenced,
                    Code::OutOfRange,
                    format!(
                        "ring_hash.load_bound is {percent}%, allowed is {LOAD_BOUND_PERCENT_MIN}% to \
                         {LOAD_BOUND_PERCENT_MAX}%, or 0% for no bound"
                    ),
                );
            }
            ring.load_bound_percent = percent;
        }
    }
}
