//! Writing a checkpoint as `torch.save` does, such that `torch.load` opens it with `weights_only`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use burn::tensor::{BoolStore, DType};
use burn_store::burn_pack::Tensor as PackTensor;

use super::super::WeightsError;
use super::super::tensors::Tensors;
use crate::atomic::write_file_with;

/// Where PyTorch puts the beginning of each storage, so that it may be mapped.
const ALIGNMENT: u64 = 64;
const FOLDER: &str = "archive";
/// The version of torch.save's archives.
const VERSION: &[u8] = b"3\n";
/// Version 4.5 of the zip format, which has 64-bit lengths.
const ZIP_VERSION: u16 = 45;
const PADDING_ID: &[u8; 2] = b"FB";

/// Writes `tensors` as a dictionary under `state_dict`, beside `values`, of which integers and floats become numbers.
pub(in super::super) fn write(
    path: &Path,
    tensors: &Tensors,
    values: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let tensors = tensors.to_tensors();
    let pickle =
        pickle(&tensors, values).map_err(|problem| WeightsError::invalid(path, problem))?;
    write_file_with(path, |out| {
        let mut archive = Archive {
            out,
            position: 0,
            directory: Vec::new(),
            entries: 0,
        };
        archive.add("data.pkl", &pickle)?;
        archive.add("byteorder", b"little")?;
        for (key, tensor) in tensors.into_iter().enumerate() {
            let bytes = tensor.into_bytes().map_err(io::Error::other)?;
            archive.add(&format!("data/{key}"), &bytes)?;
        }
        archive.add("version", VERSION)?;
        archive.finish()
    })
    .map_err(WeightsError::from)
}

fn pickle(tensors: &[PackTensor], values: &BTreeMap<String, String>) -> Result<Vec<u8>, String> {
    let mut program = b"\x80\x02}(".to_vec();
    for (key, value) in values {
        text(&mut program, key);
        if let Ok(number) = value.parse() {
            int(&mut program, number);
        } else if let Ok(number) = value.parse::<f64>() {
            program.push(b'G');
            program.extend(number.to_be_bytes());
        } else {
            text(&mut program, value);
        }
    }
    text(&mut program, "state_dict");
    program.extend(b"}(");
    for (key, tensor) in tensors.iter().enumerate() {
        let storage = storage_class(tensor.dtype).ok_or_else(|| {
            format!(
                "PyTorch has no type for `{}`: {:?}",
                tensor.name, tensor.dtype
            )
        })?;
        let shape = tensor.shape.to_vec();
        let elements: usize = shape.iter().product();
        text(&mut program, &tensor.name);
        program.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut program, "storage");
        program.extend(format!("ctorch\n{storage}\n").as_bytes());
        text(&mut program, &key.to_string());
        text(&mut program, "cpu");
        int(&mut program, elements as i64);
        program.extend(b"tQ");
        int(&mut program, 0);
        ints(&mut program, &shape);
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis].max(1);
        }
        ints(&mut program, &strides);
        program.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    program.extend(b"uu.");
    Ok(program)
}

fn text(program: &mut Vec<u8>, text: &str) {
    program.push(b'X');
    program.extend((text.len() as u32).to_le_bytes());
    program.extend(text.as_bytes());
}

fn int(program: &mut Vec<u8>, number: i64) {
    if let Ok(short) = i32::try_from(number) {
        program.push(b'J');
        program.extend(short.to_le_bytes());
    } else {
        program.extend(b"\x8a\x08");
        program.extend(number.to_le_bytes());
    }
}

fn ints(program: &mut Vec<u8>, numbers: &[usize]) {
    program.push(b'(');
    for number in numbers {
        int(program, *number as i64);
    }
    program.push(b't');
}

fn storage_class(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F32 | DType::Flex32 => "FloatStorage",
        DType::F64 => "DoubleStorage",
        DType::F16 => "HalfStorage",
        DType::BF16 => "BFloat16Storage",
        DType::I64 => "LongStorage",
        DType::I32 => "IntStorage",
        DType::I16 => "ShortStorage",
        DType::I8 => "CharStorage",
        DType::U8 => "ByteStorage",
        DType::Bool(BoolStore::Native) => "BoolStorage",
        _ => return None,
    })
}

/// A zip archive of uncompressed files, with 64-bit lengths throughout.
struct Archive<'a> {
    out: &'a mut dyn Write,
    position: u64,
    directory: Vec<u8>,
    entries: u64,
}

impl Archive<'_> {
    fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let name = format!("{FOLDER}/{name}");
        let header = self.position;
        let len = content.len() as u64;

        let mut fixed = Vec::new();
        fixed.extend(ZIP_VERSION.to_le_bytes());
        // Names are UTF-8; stored; no time.
        fixed.extend([0, 8, 0, 0, 0, 0, 0, 0]);
        fixed.extend(crc32(content).to_le_bytes());
        fixed.extend([0xff; 8]);
        fixed.extend((name.len() as u16).to_le_bytes());

        let mut extra = Vec::new();
        extra.extend([1, 0, 16, 0]);
        extra.extend(len.to_le_bytes());
        extra.extend(len.to_le_bytes());
        let before = header + 30 + (name.len() + extra.len() + 4) as u64;
        let padding = before.next_multiple_of(ALIGNMENT) - before;
        extra.extend(PADDING_ID);
        extra.extend((padding as u16).to_le_bytes());
        extra.resize(extra.len() + padding as usize, b'Z');

        let mut local = b"PK\x03\x04".to_vec();
        local.extend(&fixed);
        local.extend((extra.len() as u16).to_le_bytes());
        local.extend(name.as_bytes());
        local.extend(&extra);
        self.put(&local)?;
        self.put(content)?;

        self.directory.extend(b"PK\x01\x02");
        self.directory.extend(ZIP_VERSION.to_le_bytes());
        self.directory.extend(&fixed);
        self.directory.extend(28u16.to_le_bytes());
        self.directory.extend([0; 10]);
        self.directory.extend([0xff; 4]);
        self.directory.extend(name.as_bytes());
        self.directory.extend([1, 0, 24, 0]);
        for number in [len, len, header] {
            self.directory.extend(number.to_le_bytes());
        }
        self.entries += 1;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        let begin = self.position;
        let directory = std::mem::take(&mut self.directory);
        self.put(&directory)?;
        let end = self.position;
        let mut record = b"PK\x06\x06".to_vec();
        record.extend(44u64.to_le_bytes());
        record.extend(ZIP_VERSION.to_le_bytes());
        record.extend(ZIP_VERSION.to_le_bytes());
        record.extend([0; 8]);
        for number in [self.entries, self.entries, end - begin, begin] {
            record.extend(number.to_le_bytes());
        }
        record.extend(b"PK\x06\x07\0\0\0\0");
        record.extend(end.to_le_bytes());
        record.extend(1u32.to_le_bytes());
        record.extend(b"PK\x05\x06\0\0\0\0");
        record.extend([0xff; 12]);
        record.extend([0; 2]);
        self.put(&record)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// The checksum of zip archives.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLES: [[u32; 256]; 8] = tables();
    let mut crc = !0u32;
    let (eights, rest) = bytes.as_chunks::<8>();
    for eight in eights {
        let number = u64::from_le_bytes(*eight) ^ u64::from(crc);
        crc = number
            .to_le_bytes()
            .iter()
            .zip(TABLES.iter().rev())
            .fold(0, |crc, (byte, table)| crc ^ table[usize::from(*byte)]);
    }
    for byte in rest {
        crc = crc >> 8 ^ TABLES[0][(crc as u8 ^ byte) as usize];
    }
    !crc
}

/// What a byte does to the checksum, for each number of bytes that follow it.
const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ ((crc & 1) * 0xedb8_8320);
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[table - 1][byte];
            tables[table][byte] = crc >> 8 ^ tables[0][(crc & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}
