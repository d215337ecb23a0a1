//! Which calls have a key, and the rings that keys go by. A key comes from the application's code ([`HashKey`], in the
//! extensions of a request), else from the header that the balancer's list names.

use std::collections::HashMap;

use arc_swap::ArcSwapOption;
use http::{HeaderName, request};

use super::Member;
use crate::{
    list::List,
    picker::{Key, Keyed, Rings},
};

/// What a call is known by where the policy of its service is `ring_hash`: put it into the extensions of a request, and calls of
/// the same key go to the same endpoint while that one can take them. It comes before the header that the balancer names; other
/// policies do not look at it.
///
/// ```
/// use lookaside_sdk::HashKey;
/// let mut request = tonic::Request::new("what the method takes");
/// request.extensions_mut().insert(HashKey::of("user-7"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKey(Key);

impl HashKey {
    /// The key of these bytes; those of a header are as good.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(Key::of(bytes))
    }
}

/// Where the keys of calls are; nothing while no list asks for keys.
#[derive(Debug, Default)]
pub(super) struct Keys(ArcSwapOption<Option<HeaderName>>);

impl Keys {
    /// A new list: the rings of its tiers.
    pub(super) fn follow(&self, list: &List, members: &[Member], before: &Rings) -> Rings {
        let Some(ring) = &list.ring else {
            self.0.store(None);
            return Rings::default();
        };
        if self.0.load().as_deref() != Some(&ring.header) {
            self.0.store(Some(ring.header.clone().into()));
        }
        let by_address: HashMap<&str, &str> =
            list.endpoints.iter().map(|e| (e.address.as_str(), e.hash_key.as_str())).collect();
        let keyed = members.iter().map(|m| Keyed {
            id: m.endpoint.peer.id(),
            key: by_address.get(&*m.endpoint.address).copied().unwrap_or(&m.endpoint.address),
            priority: m.priority,
            weight: m.weight,
        });
        Rings::new(ring.seed, ring.bound_milli, keyed, before)
    }

    /// The key of a call, if it has one and it matters.
    pub(super) fn key_of(&self, head: &request::Parts) -> Option<Key> {
        let header = self.0.load();
        let header = header.as_deref()?;
        if let Some(HashKey(key)) = head.extensions.get() {
            return Some(*key);
        }
        header.as_ref().and_then(|header| head.headers.get(header)).map(|value| Key::of(value.as_bytes()))
    }
}
