//! Lanes turned round in registers, which compilers make of loads and stores of single elements.

use std::arch::x86_64::{
    __m512, _mm_storeu_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps512_ps128,
    _mm512_extractf32x4_ps, _mm512_maskz_loadu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
    _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd,
    _mm512_unpacklo_ps,
};

use crate::ops::simd::LANES;

/// Of four registers, by quarters of these, the transposed squares: quarter `q` of register `i` is element `4 q + i` of each.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_quarters(rows: [__m512; 4]) -> [__m512; 4] {
    let [a, b, c, d] = rows;
    let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let [ab_low, ab_high, cd_low, cd_high] = [
        _mm512_castps_pd(ab_low),
        _mm512_castps_pd(ab_high),
        _mm512_castps_pd(cd_low),
        _mm512_castps_pd(cd_high),
    ];
    [
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low)),
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high)),
    ]
}

/// `out[p][c] = x[c][p]` for the first `rows` rows `c` of `x` and the first `count` columns `p` of them, at most [`LANES`] each; 0 for the
/// other lanes `c`. The rows' beginnings are the strides apart.
///
/// # Safety
/// `x` must hold `rows` rows of `count`, and `out` `count` rows of [`LANES`]; the machine must have AVX-512.
#[target_feature(enable = "avx512f")]
pub(in crate::ops) unsafe fn transpose(
    x: *const f32,
    x_stride: usize,
    out: *mut f32,
    out_stride: usize,
    [rows, count]: [usize; 2],
) {
    let mask = if count < LANES { (1 << count) - 1 } else { !0 };
    let mut groups = [[_mm512_setzero_ps(); 4]; 4];
    for (group, registers) in groups.iter_mut().enumerate() {
        for (i, register) in registers.iter_mut().enumerate() {
            let row = 4 * group + i;
            if row < rows {
                // SAFETY: `count` elements of a row that `x` holds.
                *register = unsafe { _mm512_maskz_loadu_ps(mask, x.add(row * x_stride)) };
            }
        }
        *registers = transpose_quarters(*registers);
    }
    // Quarter `q` of `groups[g][i]` belongs to row `4 q + i`, at its quarter `g`: a square of quarters is left to transpose.
    let [a, b, c, d] = groups;
    for (i, (((a, b), c), d)) in a.into_iter().zip(b).zip(c).zip(d).enumerate() {
        let (ab_even, ab_odd) = (
            _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
        );
        let (cd_even, cd_odd) = (
            _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d),
        );
        let rows = [
            _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_even, cd_even),
            _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_odd, cd_odd),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_even, cd_even),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_odd, cd_odd),
        ];
        for (q, row) in rows.into_iter().enumerate() {
            if 4 * q + i < count {
                // SAFETY: row `4 q + i`.
                unsafe { _mm512_storeu_ps(out.add((4 * q + i) * out_stride), row) };
            }
        }
    }
}

/// `out[c][j] = columns[j][c]` for [`LANES`] rows `c` of four elements, whose beginnings are `stride` apart.
///
/// # Safety
/// `out` must hold such rows, and the machine must have AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn store_columns(columns: [__m512; 4], out: *mut f32, stride: usize) {
    let quarters = transpose_quarters(columns);
    for (i, rows) in quarters.into_iter().enumerate() {
        // SAFETY: rows `4 q + i`.
        unsafe {
            let row = |q: usize| out.add((4 * q + i) * stride);
            _mm_storeu_ps(row(0), _mm512_castps512_ps128(rows));
            _mm_storeu_ps(row(1), _mm512_extractf32x4_ps::<1>(rows));
            _mm_storeu_ps(row(2), _mm512_extractf32x4_ps::<2>(rows));
            _mm_storeu_ps(row(3), _mm512_extractf32x4_ps::<3>(rows));
        }
    }
}
