//! What of a table outlives the balancer: who there is, who says so, and what was found out about each, so that the next
//! start can serve what this one served. Written and read by others; here are its parts alone.
//!
//! Left out is what the next start learns anew within seconds or has from elsewhere: loads (but for capacities, without which a
//! fleet of unequal hosts would be called evenly meanwhile), ejections (clients tell of their calls every second), versions
//! (its epoch is new), configurations (the file says them again), operators' words (they have a file of their own).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    model::{EndpointSpec, ServiceName, SourceId},
    snapshot::Code,
};

/// The last known good state of every service that has endpoints.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// By name. Services of which nothing changed since the last time are shared with it.
    pub services: BTreeMap<ServiceName, Arc<KeptService>>,
}

/// One service.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptService {
    /// Not everybody had been heard: what is restored from this is not everything.
    pub settling: bool,
    /// Sources that had given a full answer.
    pub answered: BTreeSet<SourceId>,
    /// By address.
    pub endpoints: Vec<KeptEndpoint>,
}

/// One endpoint. A field added later has a default, so that older files can still be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptEndpoint {
    /// What it says of itself, or its source of it.
    pub spec: EndpointSpec,
    /// What its source says of it, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed: Option<EndpointSpec>,
    /// Sources that name it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub listed_by: BTreeSet<SourceId>,
    /// It registered itself.
    #[serde(default, skip_serializing_if = "is_false")]
    pub registered: bool,
    /// What was found out about it.
    pub health: KeptHealth,
    /// A source named it, or a check found it usable, since it started.
    #[serde(default, skip_serializing_if = "is_false")]
    pub trusted: bool,
    /// It said that it leaves.
    #[serde(default, skip_serializing_if = "is_false")]
    pub draining: bool,
    /// It left by its own word.
    #[serde(default, skip_serializing_if = "is_false")]
    pub departed: bool,
    /// Its source no longer names it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub withdrawn: bool,
    /// Its share is to grow from when it is first found usable.
    #[serde(default, skip_serializing_if = "is_false")]
    pub newcomer: bool,
    /// How far its share had grown, permille in steps; `None` once it has all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warming_permille: Option<u32>,
    /// Its capacity as lists had it, thousandths; `None` where nothing was known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_milli: Option<u32>,
}

/// What was found out about an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptHealth {
    /// Nothing yet.
    Unknown,
    /// It serves.
    Usable,
    /// It was taken out.
    Unusable {
        /// For what.
        code: Code,
        /// In words.
        detail: String,
    },
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(value: &bool) -> bool {
    !*value
}
