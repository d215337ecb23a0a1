//! Values that come and go, each at a number. A number that is free is given out again, the latest first; what was there stays until
//! then.

use std::ops::{Index, IndexMut};

/// Values of type `T`.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    all: Vec<T>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self { all: Vec::new(), free: Vec::new() }
    }

    /// Gives a value a number. `make` sees what had it before, for a number that is used again.
    pub(crate) fn put(&mut self, make: impl FnOnce(Option<&mut T>) -> T) -> u32 {
        if let Some(at) = self.free.pop() {
            let place = &mut self.all[at as usize];
            *place = make(Some(place));
            return at;
        }
        self.all.push(make(None));
        (self.all.len() - 1) as u32
    }

    /// A number is free; once, for each that was given out.
    pub(crate) fn free(&mut self, at: u32) {
        self.free.push(at);
    }

    /// All, with what is left at those that are free.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.all)
    }
}

impl<T> Index<u32> for Slots<T> {
    type Output = T;

    fn index(&self, at: u32) -> &T {
        &self.all[at as usize]
    }
}

impl<T> IndexMut<u32> for Slots<T> {
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.all[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_used_again_and_sees_what_was_there() {
        let mut slots = Slots::new();
        let [a, b] = ['a', 'b'].map(|value| slots.put(|left| left.map_or(value, |_| '!')));
        slots.free(b);
        assert_eq!((slots[a], slots[b]), ('a', 'b'));
        let mut before = None;
        let c = slots.put(|left| {
            before = left.copied();
            'c'
        });
        assert_eq!((c, before, slots.iter().collect::<Vec<_>>()), (b, Some('b'), vec![(a, &'a'), (b, &'c')]));
        slots[c] = 'd';
        assert_eq!((slots.put(|_| 'e'), slots[c]), (2, 'd'));
    }
}
