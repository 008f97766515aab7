//! BERT's WordPiece tokenizer.

mod directory;
mod error;

use std::{borrow::Cow, path::Path};

use ahash::AHashMap;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use tokenizers::{
    AddedToken, TokenizerImpl, decoders::wordpiece::WordPiece as WordPieceDecoder,
    models::wordpiece::WordPiece, normalizers::BertNormalizer,
    pre_tokenizers::bert::BertPreTokenizer, processors::bert::BertProcessing,
};

pub use directory::TokenizerConfig;
pub use error::TokenizerError;

/// The vocabulary of `bert-base-uncased`, one token a line.
const BERT_VOCAB: &str = include_str!("../../assets/vocab.txt");

/// Splits text into the word pieces of a BERT vocabulary.
///
/// Text is cleaned of control characters, lower-cased and stripped of its accents unless [`TokenizerConfig`] says
/// otherwise, split at white space, punctuation and around each CJK character, and every word into the longest pieces
/// that the vocabulary holds. A word of more than 100 characters, or with a character that the vocabulary lacks, becomes `[UNK]`. The names of
/// special tokens in the text, such as a literal `[MASK]`, become these tokens, as in Hugging Face's
/// `BertTokenizer`.
///
/// ```
/// let tokenizer = ldm_text::Tokenizer::bert();
/// assert_eq!(tokenizer.encode("A Café", 6), [101, 1037, 7668, 102, 0, 0]);
/// ```
#[derive(Clone, Debug)]
pub struct Tokenizer {
    word_pieces: TokenizerImpl<
        WordPiece,
        BertNormalizer,
        BertPreTokenizer,
        BertProcessing,
        WordPieceDecoder,
    >,
    vocab: Cow<'static, str>,
    size: usize,
    special: SpecialIds,
    config: TokenizerConfig,
}

/// The ids that frame every sequence.
#[derive(Clone, Copy, Debug)]
struct SpecialIds {
    pad: u32,
    cls: u32,
    sep: u32,
}

impl Tokenizer {
    /// The tokenizer of `bert-base-uncased`, which the paper's text-to-image models use; its vocabulary of 30,522
    /// tokens is part of the program.
    pub fn bert() -> Self {
        let config = TokenizerConfig::default();
        Self::new(Cow::Borrowed(BERT_VOCAB), config, "in the program")
            .expect("the embedded vocabulary is tested")
    }

    /// An uncased tokenizer over the vocabulary in `text`: one token a line, its id the line's number counted from 0.
    ///
    /// # Errors
    /// When one of `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]`, `[MASK]` is missing or a token is there twice.
    pub fn from_vocab(text: impl Into<String>) -> Result<Self, TokenizerError> {
        let config = TokenizerConfig::default();
        Self::new(Cow::Owned(text.into()), config, "given as text")
    }

    /// An uncased tokenizer over the vocabulary in a file.
    ///
    /// # Errors
    /// When the file can't be read, and those of [`Tokenizer::from_vocab`]; each names the file.
    pub fn from_vocab_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let text = directory::read(path)?;
        let config = TokenizerConfig::default();
        Self::new(Cow::Owned(text), config, &path.display().to_string())
    }

    fn new(
        vocab: Cow<'static, str>,
        config: TokenizerConfig,
        origin: &str,
    ) -> Result<Self, TokenizerError> {
        let mut ids = AHashMap::new();
        for (id, token) in vocab.lines().enumerate() {
            // Published vocabularies hold tokens that are white space (U+0085 ...), so only the line's end is
            // stripped.
            if ids.insert(token.to_owned(), id as u32).is_some() {
                return Err(TokenizerError::Duplicate {
                    origin: origin.to_owned(),
                    token: token.to_owned(),
                    line: id + 1,
                });
            }
        }
        let size = ids.len();
        let id_of = |token: &'static str| {
            ids.get(token)
                .copied()
                .ok_or_else(|| TokenizerError::MissingToken {
                    origin: origin.to_owned(),
                    token,
                    tokens: size,
                })
        };
        let special = SpecialIds {
            pad: id_of("[PAD]")?,
            cls: id_of("[CLS]")?,
            sep: id_of("[SEP]")?,
        };
        id_of("[UNK]")?;
        id_of("[MASK]")?;

        let model = WordPiece::builder()
            .vocab(ids)
            .max_input_chars_per_word(100)
            .build()
            .expect("a vocabulary in memory needs no file");
        let mut word_pieces = TokenizerImpl::new(model);
        let clean_text = true;
        word_pieces
            .with_normalizer(Some(BertNormalizer::new(
                clean_text,
                config.tokenize_chinese_chars,
                config.strip_accents,
                config.do_lower_case,
            )))
            .with_pre_tokenizer(Some(BertPreTokenizer));
        word_pieces.add_special_tokens(
            &["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
                .map(|token| AddedToken::from(token, true)),
        );
        Ok(Self {
            word_pieces,
            vocab,
            size,
            special,
            config,
        })
    }

    /// The ids of `text`, exactly `max_length` of them: `[CLS]`, the word pieces, `[SEP]`, then `[PAD]` (0 in
    /// BERT's vocabulary).
    ///
    /// Pieces beyond `max_length - 2` are dropped; [`Tokenizer::count`] tells whether any were. The empty text,
    /// which stands for "no prompt" in classifier-free guidance, is `[CLS] [SEP]` and padding.
    ///
    /// # Panics
    /// When `max_length` is less than 2.
    pub fn encode(&self, text: &str, max_length: usize) -> Vec<u32> {
        let mut ids = self.encode_unpadded(text, max_length);
        ids.resize(max_length, self.special.pad);
        ids
    }

    /// The ids of `text` from `[CLS]` to `[SEP]`, at most `max_length` of them.
    ///
    /// # Panics
    /// As [`Tokenizer::encode`].
    pub fn encode_unpadded(&self, text: &str, max_length: usize) -> Vec<u32> {
        assert!(
            max_length >= 2,
            "a sequence needs room for [CLS] and [SEP], not max_length {max_length}"
        );
        let mut ids = Vec::with_capacity(max_length);
        ids.push(self.special.cls);
        ids.extend(self.pieces(text).into_iter().take(max_length - 2));
        ids.push(self.special.sep);
        ids
    }

    /// The ids of several texts as one tensor `[N, max_length]`, ready for
    /// [`LdmBert::forward`](crate::LdmBert::forward).
    ///
    /// # Panics
    /// As [`Tokenizer::encode`].
    pub fn encode_batch<S: AsRef<str>>(
        &self,
        texts: &[S],
        max_length: usize,
        device: &Device,
    ) -> Tensor<2, Int> {
        self.encode_batch_masked(texts, max_length, device).0
    }

    /// As [`Tokenizer::encode_batch`], with the mask that [`BertModel::forward`](crate::BertModel::forward) takes: true from
    /// `[CLS]` to `[SEP]`, false for padding.
    ///
    /// # Panics
    /// As [`Tokenizer::encode`].
    pub fn encode_batch_masked<S: AsRef<str>>(
        &self,
        texts: &[S],
        max_length: usize,
        device: &Device,
    ) -> (Tensor<2, Int>, Tensor<2, Bool>) {
        let rows: Vec<Vec<u32>> = texts
            .iter()
            .map(|text| self.encode_unpadded(text.as_ref(), max_length))
            .collect();
        self.pad_batch(&rows, max_length, device)
    }

    /// Sequences of [`Tokenizer::encode_unpadded`] as one tensor `[N, max_length]`, with the mask of
    /// [`Tokenizer::encode_batch_masked`].
    pub fn pad_batch<R: AsRef<[u32]>>(
        &self,
        rows: &[R],
        max_length: usize,
        device: &Device,
    ) -> (Tensor<2, Int>, Tensor<2, Bool>) {
        let shape = [rows.len(), max_length];
        let mut ids: Vec<i64> = Vec::with_capacity(shape[0] * shape[1]);
        let mut mask = Vec::with_capacity(ids.capacity());
        for (row, tokens) in rows.iter().enumerate() {
            ids.extend(tokens.as_ref().iter().copied().map(i64::from));
            mask.resize(ids.len(), true);
            let end = (row + 1) * max_length;
            ids.resize(end, i64::from(self.special.pad));
            mask.resize(end, false);
        }
        (
            Tensor::from_data(TensorData::new(ids, shape), device),
            Tensor::from_data(TensorData::new(mask, shape), device),
        )
    }

    /// How many tokens `text` has before any truncation, `[CLS]` and `[SEP]` included: it loses words in
    /// [`Tokenizer::encode`] exactly when this is greater than `max_length`.
    pub fn count(&self, text: &str) -> usize {
        self.pieces(text).len() + 2
    }

    /// The number of tokens in the vocabulary, which the text encoder's embedding must cover.
    pub fn vocab_size(&self) -> usize {
        self.size
    }

    /// The vocabulary as it was read, to be written as a model directory's `tokenizer/vocab.txt`.
    pub fn vocab(&self) -> &str {
        &self.vocab
    }

    /// How text is treated, to be written as a model directory's `tokenizer/tokenizer_config.json`.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    fn pieces(&self, text: &str) -> Vec<u32> {
        self.word_pieces
            .encode_fast(text, false)
            .expect("WordPiece fails only without [UNK], and new() has made sure of it")
            .get_ids()
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabulary_is_kept_as_read_and_complete() {
        let tokenizer = Tokenizer::bert();
        assert_eq!(tokenizer.vocab_size(), 30_522);
        assert_eq!(tokenizer.vocab(), BERT_VOCAB);
        let again = Tokenizer::from_vocab(tokenizer.vocab()).unwrap();
        assert_eq!(again.encode("déjà vu", 8), tokenizer.encode("déjà vu", 8));
    }

    #[test]
    fn special_tokens_in_a_text_stay_whole() {
        let ids = Tokenizer::bert().encode("a [MASK] b", 6);
        assert_eq!(ids, [101, 1037, 103, 1038, 102, 0]);
    }

    #[test]
    fn count_tells_of_truncation() {
        let tokenizer = Tokenizer::bert();
        assert_eq!(tokenizer.count(""), 2);
        assert_eq!(tokenizer.count("a b c"), 5);
        assert_eq!(tokenizer.encode("a b c", 5), [101, 1037, 1038, 1039, 102]);
        assert_eq!(tokenizer.encode("a b c", 4), [101, 1037, 1038, 102]);
        assert_eq!(tokenizer.encode("a b c", 2), [101, 102]);
    }

    #[test]
    fn batch_stacks_rows() {
        let ids = Tokenizer::bert().encode_batch(&["a", ""], 4, &Device::flex());
        ids.into_data().convert::<i64>().assert_eq(
            &TensorData::from([[101_i64, 1037, 102, 0], [101, 102, 0, 0]]),
            true,
        );
    }

    #[test]
    fn windows_line_ends_are_no_part_of_a_token() {
        let vocab = "[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]\r\ncat\r\n";
        assert_eq!(
            Tokenizer::from_vocab(vocab).unwrap().encode("Cat dog", 5),
            [2, 5, 1, 3, 0]
        );
    }

    #[test]
    fn wrong_vocabularies_are_named() {
        let dir = std::env::temp_dir().join(format!("ldm-text-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("vocab.txt");
        std::fs::write(&file, "[PAD]\n[UNK]\n[CLS]\n").unwrap();
        let error = Tokenizer::from_vocab_file(&file).unwrap_err().to_string();
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(
            error.contains("vocab.txt") && error.contains("[SEP]"),
            "{error}"
        );

        let error = Tokenizer::from_vocab_file("/no/such/vocab.txt")
            .unwrap_err()
            .to_string();
        assert!(error.contains("/no/such/vocab.txt"), "{error}");
        let error = Tokenizer::from_vocab("[PAD]\na\na\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"a\"") && error.contains("line 3"),
            "{error}"
        );
    }
}
