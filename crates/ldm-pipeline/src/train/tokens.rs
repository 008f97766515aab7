//! Captions as tokens, made once.

use std::collections::HashMap;

use ldm_text::Tokenizer;
use rayon::prelude::*;

/// The tokens of all captions of a data set, each caption's kept once.
pub(super) struct CaptionTokens {
    /// Of all distinct captions, one after the other.
    ids: Vec<u32>,
    /// Where the tokens of each distinct caption end; the empty one is the first.
    ends: Vec<usize>,
    /// Each image's caption among the distinct ones.
    of_image: Vec<u32>,
}

impl CaptionTokens {
    /// Tokens of `captions`, one per image, the empty one where there is none; at most `max_length` of each.
    pub(super) fn new<'a>(
        tokenizer: &Tokenizer,
        captions: impl Iterator<Item = &'a str>,
        max_length: usize,
    ) -> Self {
        let mut numbers = HashMap::from([("", 0)]);
        let mut distinct = vec![""];
        let of_image = captions
            .map(|caption| {
                *numbers.entry(caption).or_insert_with(|| {
                    distinct.push(caption);
                    distinct.len() as u32 - 1
                })
            })
            .collect();
        let rows: Vec<Vec<u32>> = (distinct.par_iter())
            .map(|caption| tokenizer.encode_unpadded(caption, max_length))
            .collect();
        let ends = rows
            .iter()
            .scan(0, |end, row| {
                *end += row.len();
                Some(*end)
            })
            .collect();
        Self {
            ids: rows.concat(),
            ends,
            of_image,
        }
    }

    /// The tokens of the caption of image `image`, from `[CLS]` to `[SEP]`.
    pub(super) fn of(&self, image: usize) -> &[u32] {
        self.row(self.of_image[image] as usize)
    }

    /// The tokens of the empty caption.
    pub(super) fn empty(&self) -> &[u32] {
        self.row(0)
    }

    fn row(&self, number: usize) -> &[u32] {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.ids[start..self.ends[number]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_if_made_at_each_step() {
        let tokenizer = Tokenizer::bert();
        let long = "a very long caption ".repeat(20);
        let captions = ["a red apple", "", &long, "a red apple", "A Café"];
        let tokens = CaptionTokens::new(&tokenizer, captions.into_iter(), 16);
        for (image, caption) in captions.iter().enumerate() {
            assert_eq!(tokens.of(image), tokenizer.encode_unpadded(caption, 16));
        }
        assert_eq!(tokens.of(2).len(), 16);
        assert_eq!(tokens.empty(), tokenizer.encode_unpadded("", 16));
        assert_eq!(tokens.ends.len(), 4);
    }
}
