//! Loops that the compiler vectorises, compiled once for each instruction set and chosen at run time.
//!
//! A kernel is ordinary Rust over fixed-size lanes. [`multiversion`] compiles its body twice on x86-64: for AVX2 with
//! fused multiply-add, and for the baseline that every such machine has. Elsewhere there is one version.

use std::sync::OnceLock;

/// Lanes of the fixed-size loops: two AVX2 registers, four of NEON's.
pub(super) const LANES: usize = 16;

/// Elements that are summed in `f32` before their sum joins an `f64` total.
const SUM_BLOCK: usize = 64 * LANES;

/// What an operator runs on, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// No kernel: burn's own operators.
    Composed,
    /// A kernel compiled for every machine of its kind.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 with the extensions that came with its first servers.
    Avx512,
}

impl Level {
    /// Its name in `LDM_KERNELS`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Composed => "composed",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

/// The best that the machine has and `LDM_KERNELS` allows, decided once.
#[inline(always)]
pub(super) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let allowed = match std::env::var("LDM_KERNELS").as_deref() {
            Ok("composed") => Level::Composed,
            Ok("portable") => Level::Portable,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        allowed.min(detect())
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma")) {
        Level::Portable
    } else if has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") {
        Level::Avx512
    } else {
        Level::Avx2
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// Defines a function whose body, which may use the constant `FMA`, is compiled for several instruction sets.
///
/// Closures in the body must be inlined to be compiled with it: loops and adapters that always are, no `collect`.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, clippy::extra_unused_type_parameters)]
            fn portable<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                use $crate::ops::simd::{Level, level};

                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    portable::<true>($($arg),*)
                }

                #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    portable::<true>($($arg),*)
                }

                match level() {
                    // SAFETY: the machine has the features that the function is compiled for.
                    Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Portable | Level::Composed => {}
                }
            }
            portable::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(super) use multiversion;

/// `a * b + c`, fused only where that is one instruction (elsewhere it would be a library call).
#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `exp(x)` to two units in the last place, saturating below `exp(-87)` and above `exp(88)`.
///
/// Cephes' polynomial after `x = n ln 2 + r`. Adding and subtracting 1.5 * 2^23 rounds to the nearest integer and
/// leaves it in the low bits of the mantissa, from where it moves to the exponent: no conversion, no branch.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HI: f32 = 0.693_359_4;
    const LN_2_LO: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FMA>(n, -LN_2_LO, mul_add::<FMA>(n, -LN_2_HI, x));
    let mut p = mul_add::<FMA>(1.987_569_1e-4, r, 1.398_2e-3);
    p = mul_add::<FMA>(p, r, 8.333_452e-3);
    p = mul_add::<FMA>(p, r, 4.166_579_6e-2);
    p = mul_add::<FMA>(p, r, 1.666_666_5e-1);
    p = mul_add::<FMA>(p, r, 0.5);
    let mantissa = mul_add::<FMA>(p, r * r, r) + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    mantissa * scale
}

/// The logistic function, `1 / (1 + exp(-x))`.
#[inline(always)]
pub(super) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// Sums `f(i)` for `i` in `0..len`: in `f32` lanes within a block, the blocks in `f64`.
///
/// The order of the additions depends on `len` alone.
#[inline(always)]
pub(super) fn sum_by(len: usize, f: impl Fn(usize) -> f32) -> f64 {
    let mut total = 0.0;
    let mut start = 0;
    while start < len {
        let end = len.min(start + SUM_BLOCK);
        let mut lanes = [0.0f32; LANES];
        let whole = start + (end - start) / LANES * LANES;
        for i in (start..whole).step_by(LANES) {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                *sum += f(i + lane);
            }
        }
        for (lane, i) in (whole..end).enumerate() {
            lanes[lane] += f(i);
        }
        total += sum_of_lanes(&lanes);
        start = end;
    }
    total
}

/// The sum of the lanes in `f64`, halving rather than one after the other: short rows wait for nothing else.
#[inline(always)]
pub(super) fn sum_of_lanes(lanes: &[f32; LANES]) -> f64 {
    let mut wide = lanes.map(f64::from);
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            wide[lane] += wide[lane + half];
        }
        half /= 2;
    }
    wide[0]
}

/// Mean and reciprocal standard deviation of what is normalised together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stats {
    pub(super) mean: f32,
    pub(super) rstd: f32,
}

impl Stats {
    pub(super) fn of(x: &[f32], epsilon: f64) -> Self {
        let (mean, deviation) = moments(x);
        Self {
            mean: mean as f32,
            rstd: (1.0 / (deviation / x.len() as f64 + epsilon).sqrt()) as f32,
        }
    }
}

multiversion! {
    /// Mean and sum of squared deviations of `x`: exact means of blocks, combined as by Chan et al. (1983).
    fn moments(x: &[f32]) -> (f64, f64) {
        let (mut count, mut mean, mut deviation) = (0.0, 0.0, 0.0);
        for block in x.chunks(SUM_BLOCK) {
            let len = block.len() as f64;
            let block_mean = sum_by(block.len(), |i| block[i]) / len;
            // Deviations from the rounded mean, then corrected for its rounding.
            let pivot = block_mean as f32;
            let rounding = block_mean - f64::from(pivot);
            let around_pivot = sum_by(block.len(), |i| {
                let d = block[i] - pivot;
                d * d
            });
            let delta = block_mean - mean;
            let total = count + len;
            mean += delta * len / total;
            deviation += around_pivot - len * rounding * rounding + delta * delta * count * len / total;
            count = total;
        }
        (mean, deviation.max(0.0))
    }
}
