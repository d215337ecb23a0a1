//! Front ends put the answer of the policies into a protocol's words. They know the snapshot and who asks; they decide
//! nothing: an `if` about health here would belong in the core.
//!
//! Fan-out is by shared bytes: clients hash into cohorts, a cohort's list is computed and encoded once, and the same
//! bytes go to all of its streams.

pub(crate) mod clients;
pub(crate) mod cohorts;
mod encode;
mod few;
pub(crate) mod pick;
