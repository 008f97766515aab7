//! The transforms of Winograd's F(4x4, 3x3), with the interpolation points 0, ±1, ±2 and infinity.

use super::PATCH;
use crate::ops::simd::LANES;

/// One value for each of [`LANES`] channels.
pub(super) type Lane = [f32; LANES];

/// Applies a one-dimensional transform to the columns, then to the rows, of a square of lanes.
#[inline(always)]
pub(super) fn both_axes<const I: usize, const O: usize>(
    square: &[[Lane; I]; I],
    transform: impl Fn([f32; I]) -> [f32; O] + Copy,
) -> [[Lane; O]; O] {
    let mut half = [[[0.0; LANES]; I]; O];
    for column in 0..I {
        for lane in 0..LANES {
            let values = transform(std::array::from_fn(|row| square[row][column][lane]));
            for (half, value) in half.iter_mut().zip(values) {
                half[column][lane] = value;
            }
        }
    }
    let mut out = [[[0.0; LANES]; O]; O];
    for (half, out) in half.iter().zip(&mut out) {
        for lane in 0..LANES {
            let values = transform(std::array::from_fn(|column| half[column][lane]));
            for (out, value) in out.iter_mut().zip(values) {
                out[lane] = value;
            }
        }
    }
    out
}

/// Defines the transforms of activations over a type for which `add`, `sub`, `mul` and `mul_add` are in scope: numbers here, registers where
/// a processor's are used by hand. Functions of registers must be compiled for that processor, which generic ones are not.
macro_rules! transforms {
    ($(#[$attribute:meta])* $t:ty) => {
        /// `Bᵀ d`.
        $(#[$attribute])*
        pub(in crate::ops) fn input_transform(d: [$t; 6]) -> [$t; 6] {
            let (even, odd) = (mul_add(-4.0, d[2], d[4]), mul_add(-4.0, d[1], d[3]));
            let (even_half, odd_half) = (sub(d[4], d[2]), sub(d[3], d[1]));
            [
                mul_add(4.0, d[0], mul_add(-5.0, d[2], d[4])),
                add(even, odd),
                sub(even, odd),
                mul_add(2.0, odd_half, even_half),
                mul_add(-2.0, odd_half, even_half),
                mul_add(4.0, d[1], mul_add(-5.0, d[3], d[5])),
            ]
        }

        /// `Aᵀ m`.
        $(#[$attribute])*
        pub(in crate::ops) fn output_transform(m: [$t; 6]) -> [$t; 4] {
            let (near, far) = (add(m[1], m[2]), add(m[3], m[4]));
            let (near_odd, far_odd) = (sub(m[1], m[2]), sub(m[3], m[4]));
            [
                add(m[0], add(near, far)),
                mul_add(2.0, far_odd, near_odd),
                mul_add(4.0, far, near),
                add(mul_add(8.0, far_odd, near_odd), m[5]),
            ]
        }

        /// `A y`.
        $(#[$attribute])*
        pub(in crate::ops) fn output_adjoint(y: [$t; 4]) -> [$t; 6] {
            let (even, odd) = (add(y[0], y[2]), add(y[1], y[3]));
            let (even_far, odd_far) = (mul_add(4.0, y[2], y[0]), mul_add(8.0, y[3], mul(2.0, y[1])));
            [
                y[0],
                add(even, odd),
                sub(even, odd),
                add(even_far, odd_far),
                sub(even_far, odd_far),
                y[3],
            ]
        }
    };
}
pub(in crate::ops) use transforms;

/// Transforms where a product and a sum are one instruction, and one rounding.
pub(super) mod fused {
    use super::{add, mul, sub};

    transforms!(
        #[inline(always)]
        f32
    );

    #[inline(always)]
    fn mul_add(factor: f32, a: f32, b: f32) -> f32 {
        crate::ops::simd::mul_add::<true>(factor, a, b)
    }
}

/// Transforms where these are two.
pub(super) mod plain {
    use super::{add, mul, sub};

    transforms!(
        #[inline(always)]
        f32
    );

    #[inline(always)]
    fn mul_add(factor: f32, a: f32, b: f32) -> f32 {
        crate::ops::simd::mul_add::<false>(factor, a, b)
    }
}

#[inline(always)]
fn add(a: f32, b: f32) -> f32 {
    a + b
}

#[inline(always)]
fn sub(a: f32, b: f32) -> f32 {
    a - b
}

#[inline(always)]
fn mul(factor: f32, a: f32) -> f32 {
    factor * a
}

/// `G g`.
#[inline(always)]
pub(super) fn filter_transform(g: [f32; 3]) -> [f32; 6] {
    let (sixth, twelfth) = (1.0 / 6.0, 1.0 / 12.0);
    let (outer, far) = (-(g[0] + g[2]) * sixth, g[0] * (1.0 / 24.0) + g[2] * sixth);
    [
        g[0] * 0.25,
        outer - g[1] * sixth,
        outer + g[1] * sixth,
        far + g[1] * twelfth,
        far - g[1] * twelfth,
        g[2],
    ]
}

/// `Gᵀ u`.
#[inline(always)]
pub(super) fn filter_adjoint(u: [f32; 6]) -> [f32; 3] {
    let (near, far) = (u[1] + u[2], u[3] + u[4]);
    let (near_odd, far_odd) = (u[2] - u[1], u[3] - u[4]);
    [
        0.25 * u[0] - near * (1.0 / 6.0) + far * (1.0 / 24.0),
        near_odd * (1.0 / 6.0) + far_odd * (1.0 / 12.0),
        (far - near) * (1.0 / 6.0) + u[5],
    ]
}

/// Stores the lanes at `stride` from each other.
#[inline(always)]
pub(super) fn store(lanes: &[[Lane; PATCH]; PATCH], out: &mut [f32], stride: usize) {
    for (i, lane) in lanes.as_flattened().iter().enumerate() {
        out[i * stride..i * stride + LANES].copy_from_slice(lane);
    }
}
