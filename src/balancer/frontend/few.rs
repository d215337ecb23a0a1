//! A map for as few entries as most clients have services: one. A node of the standard library's ordered map has room for
//! eleven at once, some 300 bytes, and a stream has several such maps.

/// Sorted by key.
#[derive(Debug)]
pub(super) struct Few<K, V>(Vec<(K, V)>);

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord, V> Few<K, V> {
    fn place(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(held, _)| held.cmp(key))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn contains_key(&self, key: &K) -> bool {
        self.place(key).is_ok()
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        let at = self.place(key).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.place(key).ok()?;
        self.0.get_mut(at).map(|(_, value)| value)
    }

    /// The key as it is held here, for whoever has another copy.
    pub(super) fn key(&self, key: &K) -> Option<&K> {
        let at = self.place(key).ok()?;
        self.0.get(at).map(|(key, _)| key)
    }

    /// What was there before.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.place(&key) {
            Ok(at) => self.0.get_mut(at).map(|(_, held)| std::mem::replace(held, value)),
            Err(at) => {
                if self.0.is_empty() {
                    // A list makes room for four at the first, and for twice as many each time after.
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.place(key).ok()?;
        Some(self.0.remove(at).1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        self.0.retain(|(_, value)| keep(value));
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

impl<K, V> IntoIterator for Few<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn few_entries_are_held_as_an_ordered_map_holds_them() {
        let (mut few, mut map) = (Few::default(), BTreeMap::new());
        for n in 0..500_u32 {
            let key = n.wrapping_mul(2_654_435_761) % 23;
            match n % 3 {
                0 => assert_eq!(few.remove(&key), map.remove(&key)),
                _ => assert_eq!(few.insert(key, n), map.insert(key, n)),
            }
            assert_eq!((few.get(&key), few.len()), (map.get(&key), map.len()));
            assert_eq!(
                (few.contains_key(&key), few.key(&key).is_some()),
                (map.contains_key(&key), map.contains_key(&key))
            );
            if let Some(value) = few.get_mut(&key) {
                *value += 1;
            }
            map.entry(key).and_modify(|value| *value += 1);
            assert!(few.iter().eq(map.iter()));
            assert!(few.iter_mut().eq(map.values_mut()) && few.is_empty() == map.is_empty());
        }
        few.retain(|value| value % 2 == 0);
        map.retain(|_, value| *value % 2 == 0);
        assert!(few.into_iter().eq(map));
    }
}
