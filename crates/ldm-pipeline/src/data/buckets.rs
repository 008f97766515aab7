//! Images of several shapes in one run: which of some sizes each is brought to.

use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{folder::ImageEntry, header::upright_dimensions};

/// Width and height in pixels; `[width, height]` in a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u32; 2]", into = "[u32; 2]")]
pub struct Size {
    /// Pixels of a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// The images of a data set by the size that they are brought to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    sizes: Vec<Size>,
    /// Of each image.
    places: Vec<BucketPlace>,
    /// The numbers of the images of each bucket, in order.
    members: Vec<Vec<usize>>,
}

/// Where an image is among those of [`Buckets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketPlace {
    /// Number of its bucket.
    pub bucket: usize,
    /// Its number within the bucket.
    pub position: usize,
}

impl Size {
    /// `side` pixels each way.
    pub fn square(side: u32) -> Self {
        Self {
            width: side,
            height: side,
        }
    }

    /// Pixels in all.
    pub fn area(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Whether both have one aspect ratio.
    pub(super) fn is_similar(self, other: Self) -> bool {
        let [here, there] = cross(self, other);
        here == there
    }
}

impl Buckets {
    /// Puts each image into the bucket of the nearest aspect ratio, see [`nearest_bucket`]. Only headers are read, and with a single size
    /// nothing. An image whose header can't be read goes into the first bucket, where whoever loads it finds out why.
    pub(super) fn assign(sizes: Vec<Size>, entries: &[ImageEntry]) -> Self {
        let buckets: Vec<usize> = match sizes.len() {
            1 => vec![0; entries.len()],
            _ => (entries.par_iter())
                .map(|entry| match upright_dimensions(&entry.source) {
                    Some(image) => nearest_bucket(&sizes, image),
                    None => 0,
                })
                .collect(),
        };
        let mut members = vec![Vec::new(); sizes.len()];
        let places = (buckets.into_iter().enumerate())
            .map(|(image, bucket)| {
                members[bucket].push(image);
                BucketPlace {
                    bucket,
                    position: members[bucket].len() - 1,
                }
            })
            .collect();
        Self {
            sizes,
            places,
            members,
        }
    }

    /// The size of each bucket.
    pub fn sizes(&self) -> &[Size] {
        &self.sizes
    }

    /// The numbers of each bucket's images, in order; a bucket may have none.
    pub fn members(&self) -> &[Vec<usize>] {
        &self.members
    }

    /// Where an image is.
    pub fn place(&self, image: usize) -> BucketPlace {
        self.places[image]
    }

    /// What an image is brought to.
    pub fn size(&self, image: usize) -> Size {
        self.sizes[self.places[image].bucket]
    }

    /// All images in lists of `count` at most that are of one size, bucket by bucket.
    pub(crate) fn chunks(&self, count: usize) -> Vec<&[usize]> {
        (self.members.iter())
            .flat_map(|members| members.chunks(count))
            .collect()
    }
}

/// The number of the size whose aspect ratio is nearest to an image's: the one with the least |ln(w / h) - ln(w' / h')|, the first of
/// several. It is found without logarithms, and so is the same on every machine.
fn nearest_bucket(sizes: &[Size], image: Size) -> usize {
    // The exponential of that distance, at least 1, as numerator and denominator below 2^64.
    let distance = |size: Size| {
        let [a, b] = cross(size, image);
        [u128::from(a.max(b)), u128::from(a.min(b).max(1))]
    };
    let mut best = 0;
    for (number, &size) in sizes.iter().enumerate().skip(1) {
        let [new, old] = [distance(size), distance(sizes[best])];
        if new[0] * old[1] < old[0] * new[1] {
            best = number;
        }
    }
    best
}

/// Two numbers whose relation is that of the aspect ratios.
fn cross(a: Size, b: Size) -> [u64; 2] {
    [
        u64::from(a.width) * u64::from(b.height),
        u64::from(b.width) * u64::from(a.height),
    ]
}

impl From<[u32; 2]> for Size {
    fn from([width, height]: [u32; 2]) -> Self {
        Self { width, height }
    }
}

impl From<Size> for [u32; 2] {
    fn from(size: Size) -> Self {
        [size.width, size.height]
    }
}

impl From<(u32, u32)> for Size {
    fn from((width, height): (u32, u32)) -> Self {
        Self { width, height }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ImageFolder, test_images::photo};

    fn sizes(list: &[[u32; 2]]) -> Vec<Size> {
        list.iter().copied().map(Size::from).collect()
    }

    #[test]
    fn the_nearest_ratio_is_that_of_logarithms() {
        let sizes = sizes(&[[64, 64], [80, 48], [48, 80], [128, 32]]);
        let of = |width, height| nearest_bucket(&sizes, Size { width, height });
        for width in 1..60 {
            for height in 1..60 {
                let ratio = |size: &Size| (f64::from(size.width) / f64::from(size.height)).ln();
                let image = ratio(&Size { width, height });
                let distances: Vec<f64> = sizes.iter().map(|s| (ratio(s) - image).abs()).collect();
                let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
                assert!(
                    distances[of(width, height)] < least + 1e-12,
                    "{width} x {height}"
                );
            }
        }
        // In plain ratios 1.3 is nearer to 1 than to 1.67; in logarithms the border is at 1.291.
        assert_eq!([of(129, 100), of(130, 100)], [0, 1]);
        assert_eq!([of(100, 129), of(100, 130)], [0, 2]);
        assert_eq!([of(20_000, 1), of(1, 20_000), of(u32::MAX, 1)], [3, 2, 3]);
        assert_eq!(of(0, 0), 0);
    }

    #[test]
    fn images_are_dealt_out_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let shapes = [(30, 30), (50, 30), (30, 50), (60, 30), (40, 39)];
        for (number, (width, height)) in shapes.into_iter().enumerate() {
            photo(width, height)
                .save(dir.path().join(format!("{number}.png")))
                .unwrap();
        }
        std::fs::write(dir.path().join("5.png"), "no image").unwrap();
        let folder = ImageFolder::scan(dir.path()).unwrap();
        let sizes = sizes(&[[16, 16], [12, 20], [20, 12], [8, 64]]);
        let buckets = Buckets::assign(sizes.clone(), folder.entries());
        assert_eq!(
            buckets.members(),
            [vec![0, 4, 5], vec![2], vec![1, 3], vec![]]
        );
        for image in 0..6 {
            let BucketPlace { bucket, position } = buckets.place(image);
            assert_eq!(buckets.members()[bucket][position], image);
            assert_eq!(buckets.size(image), sizes[bucket]);
        }
        let chunks = buckets.chunks(2);
        assert_eq!(chunks, [&[0, 4][..], &[5], &[2], &[1, 3]]);

        let single = Buckets::assign(vec![Size::square(8)], folder.entries());
        assert_eq!(single.members(), [vec![0, 1, 2, 3, 4, 5]]);
    }
}
