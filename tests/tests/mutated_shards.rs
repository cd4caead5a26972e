//! Sets of shards that were taken apart and put together wrongly, in any way that random numbers
//! can think of: `shard-merge` gives back the image that they are by the reference reader, or
//! refuses them.

use tests::filters;
use tests::malformed::{metadata_first, mutate, small_stream};
use tests::random::Random;
use tests::stream::{deal, looks_complete, read_shards, read_stream};

const SETS: u64 = 400;

#[test]
fn merge_gives_back_an_image_with_the_metadata_first_or_refuses_the_set() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..SETS {
        let mut random = Random::new(seed);
        let count = 2 + random.below(3);
        let mut shards = metadata_first(count, |end| random.below(end));
        read_shards(&shards).expect("an image");
        for _ in 0..random.below(3) {
            mutate(&mut shards, |end| random.below(end));
        }
        let case = format!("seed {seed}");
        let finished = filters::merge(&shards);
        if finished.status.success() {
            let merged = read_stream(&finished.stdout).expect("an image");
            assert_eq!(Ok(&merged), read_shards(&shards).as_ref(), "{case}");
            accepted += 1;
        } else {
            finished.refused(1, &case);
            assert!(!looks_complete(&finished.stdout), "{case}: looks complete");
            refused += 1;
        }
    }
    assert!(accepted > SETS / 5 && refused > SETS / 5, "{accepted} accepted, {refused} refused");
}

#[test]
fn merge_gives_back_the_image_or_refuses_the_set() {
    let stream = small_stream();
    let whole = read_stream(&stream).expect("well-formed");
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..SETS {
        let mut random = Random::new(seed);
        let count = 1 + random.below(4);
        let mut shards = deal(&stream, count, |_| random.below(count));
        for _ in 0..random.below(3) {
            mutate(&mut shards, |end| random.below(end));
        }
        let case = format!("seed {seed}");
        let expected = read_shards(&shards);
        let finished = filters::merge(&shards);
        if finished.status.success() {
            let merged = read_stream(&finished.stdout).expect("an image");
            assert_eq!(Ok(&merged), expected.as_ref(), "{case}");
            accepted += u64::from(merged == whole);
        } else {
            finished.refused_with_a_place(&case);
            assert!(!looks_complete(&finished.stdout), "{case}: looks complete");
            refused += 1;
        }
    }
    println!("{SETS} sets: {accepted} the whole image, {refused} refused");
    assert!(accepted > SETS / 5 && refused > SETS / 5, "{accepted} accepted, {refused} refused");
}
