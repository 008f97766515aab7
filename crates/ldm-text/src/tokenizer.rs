//! BERT's uncased WordPiece tokenizer.

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

use ahash::AHashMap;
use burn::tensor::{Device, Int, Tensor, TensorData};
use tokenizers::{
    AddedToken, TokenizerImpl, decoders::wordpiece::WordPiece as WordPieceDecoder,
    models::wordpiece::WordPiece, normalizers::BertNormalizer,
    pre_tokenizers::bert::BertPreTokenizer, processors::bert::BertProcessing,
};

/// The vocabulary of `bert-base-uncased`, one token a line.
const BERT_VOCAB: &str = include_str!("../assets/vocab.txt");

/// Splits text into the word pieces of an uncased BERT vocabulary.
///
/// Text is cleaned of control characters, lower-cased and stripped of its accents, split at white space,
/// punctuation and around each CJK character, and every word into the longest pieces that the vocabulary holds. A
/// word of more than 100 characters, or with a character that the vocabulary lacks, becomes `[UNK]`. The names of
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
}

/// The ids that frame every sequence.
#[derive(Clone, Copy, Debug)]
struct SpecialIds {
    pad: u32,
    cls: u32,
    sep: u32,
}

/// Why a vocabulary can't be used.
#[derive(Debug, thiserror::Error)]
pub enum VocabError {
    /// The file can't be read as UTF-8 text.
    #[error("can't read the vocabulary {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The text isn't a BERT vocabulary.
    #[error(
        "the vocabulary {origin} has no {token} among its {tokens} lines: expected BERT's vocab.txt, one token a line"
    )]
    MissingToken {
        /// The file, or where else the text came from.
        origin: String,
        /// The special token that is missing.
        token: &'static str,
        /// The number of tokens found.
        tokens: usize,
    },
    /// A token occurs twice, so that its id is ambiguous.
    #[error(
        "the vocabulary {origin} lists \"{token}\" again in line {line}: each token must be there once"
    )]
    Duplicate {
        /// The file, or where else the text came from.
        origin: String,
        /// The repeated token.
        token: String,
        /// The line of the repetition, counted from 1.
        line: usize,
    },
}

impl Tokenizer {
    /// The tokenizer of `bert-base-uncased`, which the paper's text-to-image models use; its vocabulary of 30,522
    /// tokens is part of the program.
    pub fn bert() -> Self {
        Self::new(Cow::Borrowed(BERT_VOCAB), "in the program")
            .expect("the embedded vocabulary is tested")
    }

    /// A tokenizer over the vocabulary in `text`: one token a line, its id the line's number counted from 0.
    ///
    /// # Errors
    /// When one of `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]`, `[MASK]` is missing or a token is there twice.
    pub fn from_vocab(text: impl Into<String>) -> Result<Self, VocabError> {
        Self::new(Cow::Owned(text.into()), "given as text")
    }

    /// A tokenizer over the vocabulary in a file such as a model directory's `tokenizer/vocab.txt`.
    ///
    /// # Errors
    /// When the file can't be read, and those of [`Tokenizer::from_vocab`]; each names the file.
    pub fn from_vocab_file(path: impl AsRef<Path>) -> Result<Self, VocabError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|source| VocabError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::new(Cow::Owned(text), &path.display().to_string())
    }

    fn new(vocab: Cow<'static, str>, origin: &str) -> Result<Self, VocabError> {
        let mut ids = AHashMap::new();
        for (id, token) in vocab.lines().enumerate() {
            // Published vocabularies hold tokens that are white space (U+0085 ...), so only the line's end is
            // stripped.
            if ids.insert(token.to_owned(), id as u32).is_some() {
                return Err(VocabError::Duplicate {
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
                .ok_or_else(|| VocabError::MissingToken {
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
        let (clean_text, chinese_chars, lowercase) = (true, true, true);
        word_pieces
            .with_normalizer(Some(BertNormalizer::new(
                clean_text,
                chinese_chars,
                None,
                lowercase,
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
        assert!(
            max_length >= 2,
            "a sequence needs room for [CLS] and [SEP], not max_length {max_length}"
        );
        let mut ids = Vec::with_capacity(max_length);
        ids.push(self.special.cls);
        ids.extend(self.pieces(text).into_iter().take(max_length - 2));
        ids.push(self.special.sep);
        ids.resize(max_length, self.special.pad);
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
        let ids: Vec<i64> = texts
            .iter()
            .flat_map(|text| self.encode(text.as_ref(), max_length))
            .map(i64::from)
            .collect();
        Tensor::from_data(TensorData::new(ids, [texts.len(), max_length]), device)
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
