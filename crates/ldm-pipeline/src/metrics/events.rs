//! TensorBoard event files: protobuf messages in TFRecord frames, encoded by hand, as six fields of three messages are
//! all that scalars and images need.
//!
//! A frame is `length: u64, crc(length): u32, data, crc(data): u32`, little-endian, with masked CRC-32C. The messages
//! are TensorFlow's `event.proto` and `summary.proto`; the field numbers below are theirs.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::MetricsError;

mod field {
    pub(super) const EVENT_WALL_TIME: u32 = 1;
    pub(super) const EVENT_STEP: u32 = 2;
    pub(super) const EVENT_FILE_VERSION: u32 = 3;
    pub(super) const EVENT_SUMMARY: u32 = 5;
    pub(super) const EVENT_SESSION_LOG: u32 = 7;
    pub(super) const SESSION_STATUS: u32 = 1;
    pub(super) const SUMMARY_VALUE: u32 = 1;
    pub(super) const VALUE_TAG: u32 = 1;
    pub(super) const VALUE_SIMPLE: u32 = 2;
    pub(super) const VALUE_IMAGE: u32 = 4;
    pub(super) const IMAGE_HEIGHT: u32 = 1;
    pub(super) const IMAGE_WIDTH: u32 = 2;
    pub(super) const IMAGE_COLORSPACE: u32 = 3;
    pub(super) const IMAGE_ENCODED: u32 = 4;
}

const PREFIX: &str = "events.out.tfevents.";
const SESSION_START: u64 = 1;
const COLORSPACE_RGB: u64 = 3;

/// An open event file. TensorBoard reads all that it finds in a directory, so each session of a run adds its own.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts a new event file in `dir`, which must exist, for a run whose next step is `next_step`.
    ///
    /// The file opens with a session start, which tells TensorBoard to forget steps from `next_step` on that an
    /// earlier session of the run had written.
    ///
    /// # Errors
    /// [`MetricsError`] naming the file when it can't be written.
    pub fn create(dir: &Path, next_step: u64) -> Result<Self, MetricsError> {
        let (path, file) = create_unused(dir)?;
        let mut writer = Self { path, file };
        let version = Message::default().bytes(field::EVENT_FILE_VERSION, b"brain.Event:2");
        let start = Message::default().varint(field::SESSION_STATUS, SESSION_START);
        let session = Message::default()
            .varint(field::EVENT_STEP, next_step)
            .bytes(field::EVENT_SESSION_LOG, &start.0);
        writer.append(&[version, session])?;
        Ok(writer)
    }

    /// The file being written.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends named scalars of one step. TensorBoard holds them as `f32` and shows NaN and infinities as such.
    ///
    /// # Errors
    /// [`MetricsError`] naming the file.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<(), MetricsError> {
        let summary = values
            .into_iter()
            .fold(Message::default(), |summary, (tag, value)| {
                let value = Message::default()
                    .bytes(field::VALUE_TAG, tag.as_bytes())
                    .float(field::VALUE_SIMPLE, value as f32);
                summary.bytes(field::SUMMARY_VALUE, &value.0)
            });
        self.summary(step, &summary)
    }

    /// Appends an image, encoded as PNG.
    ///
    /// # Errors
    /// [`MetricsError`] naming the file.
    pub fn image(
        &mut self,
        step: u64,
        tag: &str,
        (width, height): (u32, u32),
        png: &[u8],
    ) -> Result<(), MetricsError> {
        let image = Message::default()
            .varint(field::IMAGE_HEIGHT, height.into())
            .varint(field::IMAGE_WIDTH, width.into())
            .varint(field::IMAGE_COLORSPACE, COLORSPACE_RGB)
            .bytes(field::IMAGE_ENCODED, png);
        let value = Message::default()
            .bytes(field::VALUE_TAG, tag.as_bytes())
            .bytes(field::VALUE_IMAGE, &image.0);
        self.summary(
            step,
            &Message::default().bytes(field::SUMMARY_VALUE, &value.0),
        )
    }

    fn summary(&mut self, step: u64, summary: &Message) -> Result<(), MetricsError> {
        let event = Message::default()
            .varint(field::EVENT_STEP, step)
            .bytes(field::EVENT_SUMMARY, &summary.0);
        self.append(&[event])
    }

    /// One write for all frames, so that a killed process tears at most the last.
    fn append(&mut self, events: &[Message]) -> Result<(), MetricsError> {
        let wall_time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        let mut frames = Vec::new();
        for event in events {
            let stamped = Message::default().double(field::EVENT_WALL_TIME, wall_time);
            frames.extend(frame(&[stamped.0, event.0.clone()].concat()));
        }
        self.file
            .write_all(&frames)
            .map_err(MetricsError::io("write", &self.path))
    }
}

/// TensorBoard recognises the name by `tfevents` and reads the files in the order of the time in it, which is why a file is never older
/// than those of earlier sessions, even if the clock was put back.
fn create_unused(dir: &Path) -> Result<(PathBuf, File), MetricsError> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let entries = std::fs::read_dir(dir).map_err(MetricsError::io("read", dir))?;
    let newest = (entries.filter_map(Result::ok))
        .filter_map(|entry| {
            let name = entry.file_name();
            let time = name.to_str()?.strip_prefix(PREFIX)?.split('.').next()?;
            time.parse::<u64>().ok()
        })
        .max();
    let seconds = now.max(newest.map_or(0, |newest| newest + 1));
    let pid = std::process::id();
    let mut count = 0;
    loop {
        let path = dir.join(format!("{PREFIX}{seconds:010}.ldm.{pid}.{count}"));
        match File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => count += 1,
            Err(error) => return Err(MetricsError::io("create", &path)(error)),
        }
    }
}

/// A protobuf message under construction. Fields with the default value could be left out; writing them is as valid.
#[derive(Debug, Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, number: u32, wire_type: u32) {
        push_varint(&mut self.0, u64::from(number << 3 | wire_type));
    }

    fn varint(mut self, number: u32, value: u64) -> Self {
        self.key(number, 0);
        push_varint(&mut self.0, value);
        self
    }

    fn double(mut self, number: u32, value: f64) -> Self {
        self.key(number, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, number: u32, value: &[u8]) -> Self {
        self.key(number, 2);
        push_varint(&mut self.0, value.len() as u64);
        self.0.extend(value);
        self
    }

    fn float(mut self, number: u32, value: f32) -> Self {
        self.key(number, 5);
        self.0.extend(value.to_le_bytes());
        self
    }
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [
        &length,
        &masked_crc(&length).to_le_bytes()[..],
        data,
        &masked_crc(data).to_le_bytes(),
    ]
    .concat()
}

/// Masked as the format asks, because a CRC over data that hold their own CRC is weak.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C bit by bit, from its polynomial: independent of the crate that the writer uses.
    fn reference_masked_crc(data: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for &byte in data {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 {
                    crc >> 1 ^ 0x82f6_3b78
                } else {
                    crc >> 1
                };
            }
        }
        let crc = !crc;
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    }

    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (head, tail) = bytes.split_at(count);
        *bytes = tail;
        head
    }

    fn read_frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let length = take(&mut bytes, 8);
            let crc = u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap());
            assert_eq!(crc, reference_masked_crc(length));
            let data = take(
                &mut bytes,
                u64::from_le_bytes(length.try_into().unwrap()) as usize,
            );
            let crc = u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap());
            assert_eq!(crc, reference_masked_crc(data));
            frames.push(data.to_vec());
        }
        frames
    }

    fn read_varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = take(bytes, 1)[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    #[derive(Debug, PartialEq)]
    enum Field {
        Varint(u64),
        Double(f64),
        Bytes(Vec<u8>),
        Float(f32),
    }

    fn read_message(mut bytes: &[u8]) -> Vec<(u32, Field)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = read_varint(&mut bytes);
            let value = match key & 7 {
                0 => Field::Varint(read_varint(&mut bytes)),
                1 => Field::Double(f64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
                2 => {
                    let length = read_varint(&mut bytes) as usize;
                    Field::Bytes(take(&mut bytes, length).to_vec())
                }
                5 => Field::Float(f32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
                wire_type => panic!("wire type {wire_type}"),
            };
            fields.push(((key >> 3) as u32, value));
        }
        fields
    }

    fn nested(field: &Field) -> Vec<(u32, Field)> {
        let Field::Bytes(bytes) = field else {
            panic!("not a message: {field:?}")
        };
        read_message(bytes)
    }

    #[test]
    fn crc_known_answers() {
        // From RFC 3720, appendix B.4: 32 bytes of zeros, and of ones.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c::crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(masked_crc(b"ldm"), reference_masked_crc(b"ldm"));
    }

    #[test]
    fn scalars_and_images_decode() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), 300).unwrap();
        writer
            .scalars(300, [("loss/total", 0.25), ("loss/kl", f64::NAN)])
            .unwrap();
        writer
            .image(301, "samples", (640, 480), b"png bytes")
            .unwrap();

        let frames = read_frames(&std::fs::read(writer.path()).unwrap());
        let events: Vec<_> = frames.iter().map(|frame| read_message(frame)).collect();
        assert_eq!(events.len(), 4);
        for event in &events {
            let (number, Field::Double(time)) = &event[0] else {
                panic!("no wall time")
            };
            assert!(*number == 1 && *time > 1.7e9);
        }
        assert_eq!(events[0][1], (3, Field::Bytes(b"brain.Event:2".to_vec())));
        assert_eq!(events[1][1], (2, Field::Varint(300)));
        assert_eq!(nested(&events[1][2].1), [(1, Field::Varint(1))]);

        assert_eq!(events[2][1], (2, Field::Varint(300)));
        let values = nested(&events[2][2].1);
        assert_eq!(
            nested(&values[0].1),
            [
                (1, Field::Bytes(b"loss/total".to_vec())),
                (2, Field::Float(0.25))
            ]
        );
        let (2, Field::Float(kl)) = nested(&values[1].1)[1] else {
            panic!("not a scalar")
        };
        assert!(kl.is_nan());

        let image = nested(&nested(&events[3][2].1)[0].1);
        assert_eq!(image[0], (1, Field::Bytes(b"samples".to_vec())));
        assert_eq!(image[1].0, 4);
        assert_eq!(
            nested(&image[1].1),
            [
                (1, Field::Varint(480)),
                (2, Field::Varint(640)),
                (3, Field::Varint(3)),
                (4, Field::Bytes(b"png bytes".to_vec()))
            ]
        );
    }

    #[test]
    fn sessions_of_one_second_get_files_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let first = EventWriter::create(dir.path(), 0).unwrap();
        let second = EventWriter::create(dir.path(), 0).unwrap();
        assert_ne!(first.path(), second.path());
        assert!(EventWriter::create(&dir.path().join("absent"), 0).is_err());
    }
}
