//! From a few sizes of micro-batch to all.

use serde::Serialize;

/// `intercept + slope * size`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// What doesn't depend on the size.
    pub intercept: f64,
    /// What each image adds; never negative.
    pub slope: f64,
}

impl Line {
    /// Least squares through values at sizes, and with a single size through it and the origin; `None` without any. A line that would fall
    /// is level, at the largest value.
    pub fn through(points: &[(usize, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        let mean = |of: fn(&(usize, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|point| point.0 as f64), mean(|point| point.1));
        let spread: f64 = (points.iter())
            .map(|point| (point.0 as f64 - x).powi(2))
            .sum();
        let largest = points.iter().map(|point| point.1).reduce(f64::max)?;
        if spread == 0.0 {
            return Some(Self::from_floor(points[0].0, largest, 0.0));
        }
        let product: f64 = (points.iter())
            .map(|point| (point.0 as f64 - x) * (point.1 - y))
            .sum();
        let slope = product / spread;
        Some(match slope > 0.0 {
            true => Self {
                intercept: y - slope * x,
                slope,
            },
            false => Self {
                intercept: largest,
                slope: 0.0,
            },
        })
    }

    /// Through a value at a size, and through what is there without any image: if `floor` is less than that, larger sizes come out too large.
    pub fn from_floor(size: usize, value: f64, floor: f64) -> Self {
        let floor = floor.min(value);
        Self {
            intercept: floor,
            slope: (value - floor) / size as f64,
        }
    }

    /// The value at a size.
    pub fn at(&self, size: usize) -> f64 {
        self.intercept + self.slope * size as f64
    }
}

/// Another way to split a step's images into micro-batches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proposal {
    /// Images per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step.
    pub accumulation: usize,
    /// What it takes, in bytes.
    pub peak_memory: u64,
    /// How long a step takes, in seconds.
    pub step_seconds: f64,
    /// The options that set it.
    pub options: String,
}

/// The largest micro-batch that divides a step's `images` and takes no more than `memory`, with its number of micro-batches and what it takes.
/// `peak` predicts that from both numbers.
pub fn propose(
    images: usize,
    memory: u64,
    peak: impl Fn(usize, usize) -> Option<u64>,
) -> Option<(usize, usize, u64)> {
    divisors(images).into_iter().rev().find_map(|size| {
        let accumulation = images / size;
        let peak = peak(size, accumulation)?;
        (peak <= memory).then_some((size, accumulation, peak))
    })
}

/// Divisors, ascending.
pub(super) fn divisors(number: usize) -> Vec<usize> {
    let small = (1..).take_while(|divisor| divisor * divisor <= number);
    let small: Vec<usize> = small.filter(|&d| number.is_multiple_of(d)).collect();
    let large = small.iter().rev().map(|divisor| number / divisor);
    let mut all: Vec<usize> = small.iter().copied().chain(large).collect();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_recovered() {
        let line = Line::through(&[(1, 130.0), (4, 220.0), (8, 340.0)]).unwrap();
        assert!((line.intercept - 100.0).abs() < 1e-9 && (line.slope - 30.0).abs() < 1e-9);
        assert!((line.at(16) - 580.0).abs() < 1e-9);
    }

    #[test]
    fn few_or_falling_points_are_no_underestimate() {
        assert_eq!(Line::through(&[]), None);
        assert_eq!(Line::through(&[(2, 50.0)]).unwrap().at(4), 100.0);
        let level = Line::through(&[(1, 50.0), (2, 40.0)]).unwrap();
        assert_eq!([level.at(1), level.at(100)], [50.0, 50.0]);
        assert_eq!(Line::from_floor(2, 50.0, 10.0).at(4), 90.0);
        assert_eq!(Line::from_floor(2, 50.0, 70.0).at(4), 50.0);
    }

    #[test]
    fn a_proposal_keeps_the_images_of_a_step() {
        let peak = |size: usize, accumulation: usize| {
            Some(100 + 30 * size as u64 + if accumulation > 1 { 7 } else { 0 })
        };
        assert_eq!(propose(24, 1000, peak), Some((24, 1, 820)));
        assert_eq!(propose(24, 819, peak), Some((12, 2, 467)));
        assert_eq!(propose(24, 300, peak), Some((6, 4, 287)));
        assert_eq!(propose(7, 300, peak), Some((1, 7, 137)));
        assert_eq!(propose(24, 136, peak), None);
        assert_eq!(propose(24, 1000, |_, _| None), None);
        for memory in 137..1000 {
            let (size, accumulation, peak) = propose(24, memory, peak).unwrap();
            assert_eq!(size * accumulation, 24);
            assert!(peak <= memory);
        }
    }

    #[test]
    fn divisors_are_all_and_in_order() {
        assert_eq!(divisors(1), [1]);
        assert_eq!(divisors(12), [1, 2, 3, 4, 6, 12]);
        assert_eq!(divisors(16), [1, 2, 4, 8, 16]);
        assert_eq!(divisors(13), [1, 13]);
    }
}
