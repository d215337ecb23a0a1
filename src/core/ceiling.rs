//! The most that what is measured of an endpoint is worth: twice the share of its tier that its weight alone would give it.
//! What a backend reports of itself is its own word, and anybody may lie.

/// The most that any capacity of a tier counts, thousandths, by the weights and capacities of all who are offered in it; those
/// of which nothing is known have 0, and do not count. Whoever is above has it in common: liars do not lift it for each other.
pub(crate) fn of(tier: impl Iterator<Item = (u64, u32)> + Clone) -> u32 {
    let known = tier.filter(|(_, milli)| *milli > 0).map(|(weight, milli)| (weight.max(1), u64::from(milli)));
    let all: u64 = known.clone().map(|(weight, _)| weight).sum();
    let mut rest: u64 = known.clone().map(|(weight, milli)| weight * milli).sum();
    let largest = known.clone().map(|(_, milli)| milli).max().unwrap_or(0);
    if largest * all <= 2 * rest {
        return u32::MAX;
    }
    let mut tier: Vec<(u64, u64)> = known.collect();
    tier.sort_unstable_by_key(|(_, milli)| std::cmp::Reverse(*milli));
    // Those at the ceiling have it in common: w c <= 2 w (c W + R) / A, solved for c, with W the weight of those at the
    // ceiling, A that of all, and R what the others are worth. Never more than half of the weight is at the ceiling.
    let mut above = 0;
    for (weight, milli) in tier {
        let ceiling = 2 * rest / all.saturating_sub(2 * above).max(1);
        if milli <= ceiling {
            return u32::try_from(ceiling).unwrap_or(u32::MAX);
        }
        above += weight;
        rest -= weight * milli;
    }
    u32::MAX
}

#[cfg(test)]
mod tests {
    #[test]
    fn nobody_is_worth_more_than_twice_its_weight_in_the_tier() {
        let of = |tier: &[(u64, u32)]| super::of(tier.iter().copied());
        assert_eq!(of(&[]), u32::MAX);
        assert_eq!(of(&[(1, 16_000), (1, 62)]), u32::MAX, "twice a half is everything");
        assert_eq!(of(&[(1, 16_000), (1, 1_000), (1, 1_000), (1, 1_000)]), 3_000, "3 of 6 is twice a quarter");
        assert_eq!(of(&[(1, 0), (1, 0), (1, 1_000)]), u32::MAX, "of others nothing is known");
        for tier in
            [vec![(3, 900), (5, 16_000), (2, 15_000), (400, 62)], vec![(10_000, 16_000), (1, 16_000), (9_000, 70)]]
        {
            let ceiling = of(&tier);
            let capped: Vec<(u64, u64)> = tier.iter().map(|(w, c)| (*w, u64::from((*c).min(ceiling)))).collect();
            let (all, sum): (u64, u64) = capped.iter().fold((0, 0), |(all, sum), (w, c)| (all + w, sum + w * c));
            assert!(capped.iter().all(|(_, c)| c * all <= 2 * sum), "{capped:?}");
        }
    }
}
