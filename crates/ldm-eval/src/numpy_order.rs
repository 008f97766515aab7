//! The orders that NumPy's `RandomState(seed)` draws, which torch-fidelity cuts its splits and subsets by: with them the same features
//! give the same score to the last digits.

const WORDS: usize = 624;
const MIDDLE: usize = 397;

/// The Mersenne Twister MT19937 (Matsumoto & Nishimura 1998) with what NumPy makes of it.
#[derive(Clone, Debug)]
pub(crate) struct NumpyOrder {
    state: [u32; WORDS],
    next: usize,
}

impl NumpyOrder {
    pub(crate) fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for index in 1..WORDS {
            let last = state[index - 1];
            state[index] = 1_812_433_253u32
                .wrapping_mul(last ^ (last >> 30))
                .wrapping_add(index as u32);
        }
        Self { state, next: WORDS }
    }

    /// `permutation(count)`; its first `k` items are `choice(count, k, replace=False)`.
    pub(crate) fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut items: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            let other = self.up_to(last as u32);
            items.swap(last, other as usize);
        }
        items
    }

    /// Uniform in `0..=most`, by rejection.
    fn up_to(&mut self, most: u32) -> u32 {
        let mask = u32::MAX >> most.leading_zeros();
        loop {
            let value = self.word() & mask;
            if value <= most {
                return value;
            }
        }
    }

    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for index in 0..WORDS {
            let following = self.state[(index + 1) % WORDS];
            let joined = (self.state[index] & 0x8000_0000) | (following & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + MIDDLE) % WORDS] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_mersenne_twister() {
        // The first outputs of the authors' reference for the seed 5489.
        let mut order = NumpyOrder::new(5489);
        let words: Vec<u32> = (0..3).map(|_| order.word()).collect();
        assert_eq!(words, [3_499_211_612, 581_869_302, 3_890_346_734]);
        // Its 10,000th output, which the C++ standard asks for.
        let mut order = NumpyOrder::new(5489);
        let last = (0..10_000).map(|_| order.word()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn a_permutation_holds_every_item_once() {
        for count in [0, 1, 2, 37] {
            let mut items = NumpyOrder::new(2020).permutation(count);
            items.sort_unstable();
            assert_eq!(items, (0..count).collect::<Vec<_>>());
        }
    }
}
