//! Checks that the shards belong together, by the first marker of each.

use cli::Place;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use wire_format::{ImageId, Marker, Shard};

/// What a shard says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) image_id: Option<ImageId>,
    pub(crate) shard: Option<Shard>,
}

/// Why shards do not belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// The first belongs to another image than most of the shards, or than the second.
    OtherImage(Place, Option<Place>),
    /// The first comes from another split of the image than most of the shards, or than the second.
    OtherSplit(Place, Option<Place>),
    /// Both say that they are the metadata shard.
    TwoMetadata(Place, Place),
    /// It says nothing of itself, and the others do.
    Silent(Place),
    /// It is one of so many shards, and most of the shards, or the last, of so many others.
    OtherCount(Place, u32, Option<Place>, u32),
    /// The second is the same shard as the first.
    Twice(Place, Place),
    /// These shards are missing, out of so many.
    Missing(Vec<u32>, u32),
    /// So many were given, and there are so many.
    Count(usize, u32),
}

impl Claim {
    /// What the first marker of a shard says.
    pub(crate) fn of(first: &Marker) -> Claim {
        Claim { image_id: first.image_id, shard: first.shard }
    }
}

/// The shards of one image: all of them, as far as they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// `None` if the shards say nothing, which those of other programs don't.
    pub(crate) count: Option<u32>,
    /// The shards that nobody claims to be. They may have received nothing, and be empty.
    pub(crate) unclaimed: Vec<u32>,
    /// The place among the shards of the one that holds the metadata.
    pub(crate) metadata: Option<usize>,
}

/// Sees whether the shards are the whole set. A shard without a claim is empty.
pub(crate) fn check(shards: &[(Place, Option<Claim>)]) -> Result<Set, ClaimError> {
    let claims: Vec<_> =
        shards.iter().filter_map(|(place, claim)| Some((place, (*claim)?))).collect();
    one_image(&claims)?;
    if claims.iter().all(|(_, claim)| claim.shard.is_none()) {
        return Ok(Set::default());
    }
    let silent = |(_, claim): &&(&Place, Claim)| claim.shard.is_none() || claim.image_id.is_none();
    if let Some((place, _)) = claims.iter().find(silent) {
        return Err(ClaimError::Silent((*place).clone()));
    }
    let seats: Vec<_> =
        claims.iter().filter_map(|(place, claim)| Some((*place, claim.shard?))).collect();
    one_split(&seats)?;
    let count = one_count(&seats)?;
    no_shard_twice(&seats)?;
    let metadata = metadata(shards)?;
    Ok(Set { metadata, ..complete(&seats, shards.len(), count)? })
}

fn one_image(claims: &[(&Place, Claim)]) -> Result<(), ClaimError> {
    let ids: Vec<_> =
        claims.iter().filter_map(|(place, claim)| Some((*place, claim.image_id?))).collect();
    match odd_one(&ids) {
        Some(odd) => Err(ClaimError::OtherImage(odd.place.clone(), odd.unlike)),
        None => Ok(()),
    }
}

/// Two splits of one stream have cut it in different places. Shards of versions that did not say
/// which split they are of are taken to be of one.
fn one_split(seats: &[(&Place, Shard)]) -> Result<(), ClaimError> {
    let ids: Vec<_> = seats.iter().map(|(place, shard)| (*place, shard.split_id)).collect();
    match odd_one(&ids) {
        Some(odd) => Err(ClaimError::OtherSplit(odd.place.clone(), odd.unlike)),
        None => Ok(()),
    }
}

fn metadata(shards: &[(Place, Option<Claim>)]) -> Result<Option<usize>, ClaimError> {
    let is_metadata =
        |claim: &Option<Claim>| claim.and_then(|it| it.shard).is_some_and(|it| it.metadata);
    let mut found = shards.iter().enumerate().filter(|(_, (_, claim))| is_metadata(claim));
    match (found.next(), found.next()) {
        (Some((_, (first, _))), Some((_, (second, _)))) => {
            Err(ClaimError::TwoMetadata(first.clone(), second.clone()))
        }
        (found, _) => Ok(found.map(|(index, _)| index)),
    }
}

fn one_count(seats: &[(&Place, Shard)]) -> Result<u32, ClaimError> {
    let counts: Vec<_> = seats.iter().map(|(place, shard)| (*place, shard.count)).collect();
    match odd_one(&counts) {
        Some(odd) => {
            Err(ClaimError::OtherCount(odd.place.clone(), odd.value, odd.unlike, odd.usual))
        }
        None => Ok(counts.first().map_or(0, |(_, count)| *count)),
    }
}

fn no_shard_twice(seats: &[(&Place, Shard)]) -> Result<(), ClaimError> {
    let mut seen = HashMap::new();
    for (place, shard) in seats {
        if let Some(first) = seen.insert(shard.index, *place) {
            return Err(ClaimError::Twice(first.clone(), (*place).clone()));
        }
    }
    Ok(())
}

fn complete(seats: &[(&Place, Shard)], given: usize, count: u32) -> Result<Set, ClaimError> {
    // The count comes from outside: no list as long as it claims, where it does not fit.
    if given != count as usize && (given > count as usize || given > seats.len()) {
        return Err(ClaimError::Count(given, count));
    }
    let is_claimed = |index: &u32| seats.iter().any(|(_, shard)| shard.index == *index);
    // A few are enough for a message; where the number is right, there are no more than given.
    let unclaimed: Vec<_> =
        (0..count).filter(|index| !is_claimed(index)).take(given.max(LISTED)).collect();
    match given == count as usize {
        true => Ok(Set { count: Some(count), unclaimed, metadata: None }),
        false => Err(ClaimError::Missing(unclaimed, count)),
    }
}

/// What is unlike the rest.
struct Odd<'a, T> {
    place: &'a Place,
    value: T,
    /// With no majority to speak of: the first one that it is unlike.
    unlike: Option<Place>,
    usual: T,
}

/// The first that is not as most are.
fn odd_one<'a, T: Copy + Eq + Hash>(values: &[(&'a Place, T)]) -> Option<Odd<'a, T>> {
    let mut votes = HashMap::new();
    values.iter().for_each(|(_, value)| *votes.entry(*value).or_insert(0) += 1);
    let most = *votes.values().max()?;
    // Among equals, the first.
    let (first, usual) = *values.iter().find(|(_, value)| votes.get(value) == Some(&most))?;
    let (place, value) = *values.iter().find(|(_, value)| *value != usual)?;
    let is_majority = most * 2 > values.len();
    let unlike = (!is_majority).then(|| first.clone());
    Some(Odd { place, value, unlike, usual })
}

/// How many missing shards a message lists.
const LISTED: usize = 8;

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClaimError::OtherImage(place, None) => {
                write!(f, "{place}: belongs to another image than the other shards")
            }
            ClaimError::OtherImage(place, Some(first)) => {
                write!(f, "{place}: belongs to another image than {first}")
            }
            ClaimError::OtherSplit(place, None) => {
                write!(f, "{place}: belongs to another split of the image than the other shards")
            }
            ClaimError::OtherSplit(place, Some(first)) => {
                write!(f, "{place}: belongs to another split of the image than {first}")
            }
            ClaimError::TwoMetadata(first, second) => {
                write!(f, "{second}: is the metadata shard, and so is {first}")
            }
            ClaimError::Silent(place) => {
                write!(f, "{place}: does not say what image it belongs to, as the others do")
            }
            ClaimError::OtherCount(place, count, None, usual) => {
                write!(f, "{place}: is one of {count} shards, and the others are of {usual}")
            }
            ClaimError::OtherCount(place, count, Some(first), usual) => {
                write!(f, "{place}: is one of {count} shards, and {first} is of {usual}")
            }
            ClaimError::Twice(first, second) => write!(f, "{second}: the same shard as {first}"),
            ClaimError::Missing(missing, count) => missing_shards(f, missing, *count),
            ClaimError::Count(given, count) => {
                let were = if *given == 1 { "shard was" } else { "shards were" };
                write!(f, "{given} {were} given, and the image has {count}")
            }
        }
    }
}

fn missing_shards(f: &mut fmt::Formatter<'_>, missing: &[u32], count: u32) -> fmt::Result {
    match missing {
        [one] => write!(f, "shard {one} of {count} is missing"),
        [listed @ .., last] if missing.len() < LISTED => {
            let listed: Vec<_> = listed.iter().map(u32::to_string).collect();
            write!(f, "shards {} and {last} of {count} are missing", listed.join(", "))
        }
        _ => write!(f, "many of {count} shards are missing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire_format::SplitId;

    /// Shards as `(image, index, count)`; an image of 0 says nothing, a count of 0 is an empty
    /// shard.
    fn checked(shards: &[(u8, u32, u32)]) -> Result<Set, String> {
        let shards: Vec<_> = (0..)
            .zip(shards)
            .map(|(index, (image, shard, count))| {
                let claim = Claim {
                    image_id: (*image > 0).then_some(ImageId([*image; 16])),
                    shard: (*image > 0).then(|| Shard::new(*shard, *count)),
                };
                (Place::Shard { index, fd: 10 + index as i32 }, (*count > 0).then_some(claim))
            })
            .collect();
        check(&shards).map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_set_is_accepted_in_any_order() {
        let set = Set { count: Some(3), unclaimed: vec![], metadata: None };
        assert_eq!(checked(&[(1, 2, 3), (1, 0, 3), (1, 1, 3)]), Ok(set));
        let set = Set { count: Some(3), unclaimed: vec![0, 2], metadata: None };
        assert_eq!(checked(&[(0, 0, 0), (1, 1, 3), (0, 0, 0)]), Ok(set));
        assert_eq!(checked(&[(0, 0, 1), (0, 0, 0), (0, 0, 1)]), Ok(Set::default()));
        assert_eq!(checked(&[]), Ok(Set::default()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Shards<'a> = &'a [(u8, u32, u32)];
        let cases: [(Shards<'_>, &str); 12] = [
            (
                &[(1, 0, 3), (2, 1, 3), (1, 2, 3)],
                "shard 1 (fd 11): belongs to another image than the other shards",
            ),
            (
                &[(2, 0, 3), (1, 1, 3), (1, 2, 3)],
                "shard 0 (fd 10): belongs to another image than the other shards",
            ),
            (
                &[(1, 0, 2), (2, 1, 2)],
                "shard 1 (fd 11): belongs to another image than shard 0 (fd 10)",
            ),
            (
                &[(1, 0, 2), (0, 0, 1)],
                "shard 1 (fd 11): does not say what image it belongs to, as the others do",
            ),
            (
                &[(1, 0, 3), (1, 1, 4), (1, 2, 3)],
                "shard 1 (fd 11): is one of 4 shards, and the others are of 3",
            ),
            (
                &[(1, 0, 2), (1, 1, 3)],
                "shard 1 (fd 11): is one of 3 shards, and shard 0 (fd 10) is of 2",
            ),
            (&[(1, 1, 2), (1, 1, 2)], "shard 1 (fd 11): the same shard as shard 0 (fd 10)"),
            (&[(1, 3, 4), (1, 0, 4), (1, 1, 4)], "shard 2 of 4 is missing"),
            (&[(1, 3, 4), (1, 0, 4)], "shards 1 and 2 of 4 are missing"),
            (&[(1, 0, u32::MAX)], "many of 4294967295 shards are missing"),
            (&[(1, 3, 4), (0, 0, 0), (1, 1, 4)], "3 shards were given, and the image has 4"),
            (&[(1, 0, 1), (0, 0, 0)], "2 shards were given, and the image has 1"),
        ];
        for (shards, expected) in cases {
            assert_eq!(checked(shards), Err(expected.to_owned()), "{shards:?}");
        }
    }

    /// The same with shards of this image whose split (0 says nothing) and kind are given.
    fn checked_splits(shards: &[(u8, bool)]) -> Result<Option<usize>, String> {
        let count = shards.len() as u32;
        let shards: Vec<_> = (0..)
            .zip(shards)
            .map(|(index, (split, metadata))| {
                let split_id = (*split > 0).then_some(SplitId([*split; 16]));
                let shard = Shard { index, count, split_id, metadata: *metadata };
                let claim = Claim { image_id: Some(ImageId([1; 16])), shard: Some(shard) };
                let place = Place::Shard { index: index as usize, fd: 10 + index as i32 };
                (place, Some(claim))
            })
            .collect();
        check(&shards).map(|set| set.metadata).map_err(|error| error.to_string())
    }

    #[test]
    fn two_splits_of_an_image_are_told_apart() {
        assert_eq!(checked_splits(&[(0, false), (0, false)]), Ok(None));
        assert_eq!(checked_splits(&[(1, false), (1, true)]), Ok(Some(1)));
        for (shards, expected) in [
            (
                vec![(1, false), (2, false), (1, false)],
                "shard 1 (fd 11): belongs to another split of the image than the other shards",
            ),
            (
                vec![(1, false), (0, false)],
                "shard 1 (fd 11): belongs to another split of the image than shard 0 (fd 10)",
            ),
            (
                vec![(1, true), (1, true)],
                "shard 1 (fd 11): is the metadata shard, and so is shard 0 (fd 10)",
            ),
        ] {
            assert_eq!(checked_splits(&shards), Err(expected.to_owned()));
        }
    }
}
