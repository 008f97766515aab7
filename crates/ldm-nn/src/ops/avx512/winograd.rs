//! Winograd's transforms of tiles, [`LANES`] channels a register.

use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::transpose::store_columns;
use crate::ops::{
    simd::LANES,
    winograd::{Square, transforms},
};

transforms!(
    #[inline]
    #[target_feature(enable = "avx512f")]
    __m512
);

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sub(a: __m512, b: __m512) -> __m512 {
    _mm512_sub_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn mul(factor: f32, a: __m512) -> __m512 {
    _mm512_mul_ps(_mm512_set1_ps(factor), a)
}

/// `factor a + b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn mul_add(factor: f32, a: __m512, b: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_set1_ps(factor), a, b)
}

/// Defines a function that takes squares of `$side` x `$side` pixels to the frequencies by `$along` along each axis.
macro_rules! to_frequencies {
    ($(#[$doc:meta])* $name:ident, $side:literal, $along:ident) => {
        $(#[$doc])*
        #[target_feature(enable = "avx512f")]
        pub(in crate::ops) unsafe fn $name(square: Square<'_>, out: *mut f32, stride: usize) {
            let last = ($side - 1) * (square.row + square.column);
            assert!(last + square.column <= square.data.len());
            for channel in (0..square.column).step_by(LANES) {
                let mut half = [[_mm512_setzero_ps(); $side]; 6];
                for j in 0..$side {
                    let mut column = [_mm512_setzero_ps(); $side];
                    for (i, pixel) in column.iter_mut().enumerate() {
                        let start = i * square.row + j * square.column + channel;
                        // SAFETY: the pixels' channels are in the square by the assertion.
                        *pixel = unsafe { _mm512_loadu_ps(square.data.as_ptr().add(start)) };
                    }
                    for (half, value) in half.iter_mut().zip($along(column)) {
                        half[j] = value;
                    }
                }
                for (i, half) in half.into_iter().enumerate() {
                    for (j, value) in $along(half).into_iter().enumerate() {
                        // SAFETY: the frequencies are in `out` as the caller promises.
                        unsafe { _mm512_storeu_ps(out.add((6 * i + j) * stride + channel), value) };
                    }
                }
            }
        }
    };
}

to_frequencies!(
    /// Takes the 6 x 6 inputs of a tile to the frequencies, every channel: frequency `f` begins at `f * stride` of `out`.
    ///
    /// # Safety
    /// `out` must hold as much, and the machine must have AVX-512.
    transform_input, 6, input_transform
);

to_frequencies!(
    /// Takes the 4 x 4 gradients of a tile's outputs to the frequencies, like [`transform_input`].
    ///
    /// # Safety
    /// As of [`transform_input`].
    transform_gradient, 4, output_adjoint
);

/// Takes the sums of a tile, [`LANES`] outputs, back to 4 x 4 pixels, adds `bias`, and writes the first `rows` of their rows: that of output
/// `c` begins at `c * plane` of `out`, and the next at `width` from it. Frequency `f` begins at `f * stride` of `sums`.
///
/// # Safety
/// `sums` and `out` must hold as much, and the machine must have AVX-512.
#[target_feature(enable = "avx512f")]
pub(in crate::ops) unsafe fn transform_output(
    sums: *const f32,
    stride: usize,
    bias: &[f32; LANES],
    out: *mut f32,
    [plane, width]: [usize; 2],
    rows: usize,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let bias = _mm512_loadu_ps(bias.as_ptr());
        let mut half = [[_mm512_setzero_ps(); 6]; 4];
        for j in 0..6 {
            let mut column = [_mm512_setzero_ps(); 6];
            for (i, sum) in column.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(sums.add((6 * i + j) * stride));
            }
            for (half, value) in half.iter_mut().zip(output_transform(column)) {
                half[j] = value;
            }
        }
        for (i, half) in half.into_iter().enumerate().take(rows) {
            let [a, b, c, d] = output_transform(half);
            let columns = [add(a, bias), add(b, bias), add(c, bias), add(d, bias)];
            store_columns(columns, out.add(i * width), plane);
        }
    }
}
