//! PyTorch's own files: a zip archive with a pickle, which says what there is, and a file of raw numbers per storage.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use burn::tensor::{BoolStore, DType, TensorData};
use burn_store::{
    bridge,
    burn_pack::{Error as PackError, Tensor as PackTensor},
};
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use super::{
    Tensors, WeightsError,
    file::read_at,
    pickle::{Node, Pickle, StoredTensor},
};
use crate::atomic::write_file_with;

/// Keys under which training programs keep the weights among other things.
const STATE_KEYS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];
/// PyTorch aligns numbers in a file so.
const ALIGNMENT: u16 = 64;

/// Opens a PyTorch file; each tensor's data is read when it is asked for.
pub(super) fn open(path: &Path) -> Result<Tensors, WeightsError> {
    let invalid = |reason: String| WeightsError::invalid(path, reason);
    let unreadable = |source| WeightsError::unreadable(path, source);
    let file = File::open(path).map_err(unreadable)?;
    let file_len = file.metadata().map_err(unreadable)?.len();
    let mut archive =
        ZipArchive::new(&file).map_err(|error| invalid(format!("a damaged zip archive: {error}")))?;

    let mut entries = BTreeMap::new();
    let mut folder = None;
    for index in 0..archive.len() {
        let entry = (archive.by_index_raw(index)).map_err(|error| invalid(error.to_string()))?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(invalid(format!(
                "{} in it is compressed, which PyTorch doesn't do",
                entry.name()
            )));
        }
        let Some(start) = entry.data_start() else {
            return Err(invalid(format!("{} in it can't be found", entry.name())));
        };
        if start.checked_add(entry.size()).is_none_or(|end| end > file_len) {
            return Err(invalid(format!("{} in it reaches beyond its end", entry.name())));
        }
        if let Some(name) = entry.name().strip_suffix("data.pkl") {
            folder = Some(name.to_owned());
        }
        entries.insert(entry.name().to_owned(), (start, entry.size()));
    }
    let folder = folder.ok_or_else(|| invalid("a zip archive without a pickle".into()))?;
    let read_entry = |name: &str| -> Result<Option<Vec<u8>>, WeightsError> {
        let Some(&(start, size)) = entries.get(&format!("{folder}{name}")) else {
            return Ok(None);
        };
        read_at(&file, start, size as usize).map(Some).map_err(unreadable)
    };
    if read_entry("byteorder")?.is_some_and(|order| order != b"little") {
        return Err(invalid("its numbers are stored big-endian".into()));
    }
    let program = read_entry("data.pkl")?.unwrap_or_default();
    let pickle = Pickle::read(&program, file_len).map_err(invalid)?;
    drop(program);

    let file = Arc::new(file);
    let state = state_dict(&pickle)
        .ok_or_else(|| invalid(format!("it holds {}, not tensors by name", pickle.root())))?;
    let mut tensors = Vec::new();
    let mut others = Vec::new();
    for (name, value) in pickle.items(state) {
        let Node::Tensor(tensor) = value else {
            others.push(name.to_owned());
            continue;
        };
        let key = &tensor.storage.key;
        let tensor_error = |reason: &str| invalid(format!("tensor `{name}`: {reason}"));
        let &(start, size) = (entries.get(&format!("{folder}data/{key}")))
            .ok_or_else(|| tensor_error("its storage is missing"))?;
        let needed = (tensor.storage.len as u64).checked_mul(tensor.storage.dtype.size() as u64);
        if needed.is_none_or(|needed| needed > size) {
            return Err(tensor_error("its storage is truncated"));
        }
        // Strides of 0 make many numbers of few.
        if (tensor.count() as u64).saturating_mul(tensor.storage.dtype.size() as u64) > file_len {
            return Err(tensor_error("it has more numbers than the file"));
        }
        tensors.push(deferred(name, tensor, start, &file));
    }
    Ok(Tensors::new(path, tensors, others))
}

/// The dictionary with the weights: the whole, or a part of what a training program saved.
fn state_dict(pickle: &Pickle) -> Option<&Node> {
    let root = pickle.root();
    let holds_tensors =
        |node: &&Node| pickle.items(node).any(|(_, value)| matches!(value, Node::Tensor(_)));
    STATE_KEYS
        .iter()
        .filter_map(|key| pickle.get(root, key))
        .chain([root])
        .find(holds_tensors)
}

/// A tensor whose numbers are read, and gathered if they don't lie in a row, when it is asked for.
fn deferred(name: &str, tensor: &StoredTensor, start: u64, file: &Arc<File>) -> PackTensor {
    let (dtype, width) = (tensor.storage.dtype, tensor.storage.dtype.size());
    let view = View {
        start: start + (tensor.offset * width) as u64,
        width,
        shape: tensor.shape.clone(),
        strides: tensor.strides.clone(),
    };
    let file = Arc::clone(file);
    let shape = tensor.shape.clone();
    bridge::deferred(name.to_owned(), dtype, shape.clone().into(), None, move || {
        let bytes = view
            .read(&file)
            .map_err(|error| PackError::IoError(error.to_string()))?;
        Ok(TensorData::from_bytes_vec(bytes, shape.clone(), dtype))
    })
}

/// Numbers at regular distances in a file.
struct View {
    /// Of the first number, in bytes.
    start: u64,
    /// Of a number, in bytes.
    width: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    fn read(&self, file: &File) -> io::Result<Vec<u8>> {
        let count: usize = self.shape.iter().product();
        if count == 0 {
            return Ok(Vec::new());
        }
        let axes = || self.shape.iter().zip(&self.strides);
        let span: usize = 1 + axes().map(|(size, stride)| (size - 1) * stride).sum::<usize>();
        let bytes = read_at(file, self.start, span * self.width)?;
        if self.is_contiguous() {
            return Ok(bytes);
        }
        let mut gathered = Vec::with_capacity(count * self.width);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..count {
            let at: usize = index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum();
            gathered.extend_from_slice(&bytes[at * self.width..(at + 1) * self.width]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(gathered)
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        (self.shape.iter().zip(&self.strides)).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        })
    }
}

/// Writes `tensors` as `{"state_dict": ..., "global_step": 0}` the way `torch.save` does, one tensor in memory at a time.
pub(super) fn write(path: &Path, tensors: Vec<PackTensor>) -> Result<(), WeightsError> {
    let program =
        program(&tensors).map_err(|reason| WeightsError::invalid(path, reason))?;
    write_file_with(path, |out| {
        let mut archive = ZipWriter::new_stream(out);
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT);
        let mut entry = |name: &str, bytes: &[u8]| -> io::Result<()> {
            // Entries beyond 4 GiB need longer fields.
            let large = bytes.len() as u64 >= u64::from(u32::MAX);
            archive.start_file(format!("archive/{name}"), options.large_file(large))?;
            archive.write_all(bytes)
        };
        entry("data.pkl", &program)?;
        entry("byteorder", b"little")?;
        for (number, tensor) in tensors.into_iter().enumerate() {
            let bytes = tensor.into_bytes().map_err(io::Error::other)?;
            entry(&format!("data/{number}"), &bytes)?;
        }
        entry("version", b"3\n")?;
        archive.finish()?;
        Ok(())
    })
    .map_err(WeightsError::from)
}

/// The pickle of a checkpoint whose tensor number `i` has storage `i`. Protocol 2, as PyTorch writes it.
fn program(tensors: &[PackTensor]) -> Result<Vec<u8>, String> {
    let mut out = Program(vec![0x80, 2]);
    out.op(b'}').op(b'(').text("state_dict").op(b'}').op(b'(');
    for (number, tensor) in tensors.iter().enumerate() {
        let class = storage_class(tensor.dtype).ok_or_else(|| {
            format!("PyTorch's files have no type for `{}`: {:?}", tensor.name, tensor.dtype)
        })?;
        let shape = tensor.shape.to_vec();
        let count: usize = shape.iter().product();
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis].max(1);
        }
        out.text(&tensor.name).global("torch._utils", "_rebuild_tensor_v2");
        out.op(b'(').op(b'(').text("storage").global("torch", class);
        out.text(&number.to_string()).text("cpu").int(count).op(b't').op(b'Q');
        out.int(0).sizes(&shape).sizes(&strides).op(0x89);
        // The hooks, an empty dictionary.
        out.global("collections", "OrderedDict").op(b')').op(b'R');
        out.op(b't').op(b'R');
    }
    out.op(b'u').text("global_step").int(0).op(b'u').op(b'.');
    Ok(out.0)
}

struct Program(Vec<u8>);

impl Program {
    fn op(&mut self, op: u8) -> &mut Self {
        self.0.push(op);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.0.push(b'X');
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn global(&mut self, module: &str, name: &str) -> &mut Self {
        self.0.extend(format!("c{module}\n{name}\n").as_bytes());
        self
    }

    fn int(&mut self, value: usize) -> &mut Self {
        match i32::try_from(value) {
            Ok(value) => {
                self.0.push(b'J');
                self.0.extend(value.to_le_bytes());
            }
            Err(_) => {
                self.0.extend([0x8a, 8]);
                self.0.extend((value as u64).to_le_bytes());
            }
        }
        self
    }

    fn sizes(&mut self, sizes: &[usize]) -> &mut Self {
        self.0.push(b'(');
        for &size in sizes {
            self.int(size);
        }
        self.op(b't')
    }
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

/// Whether a file begins like a zip archive, and whether like a pickle alone, as PyTorch wrote before version 1.6.
pub(super) fn recognise(start: &[u8]) -> Option<Kind> {
    if start.starts_with(b"PK\x03\x04") {
        return Some(Kind::Zip);
    }
    // A protocol, then its magic number as a long integer.
    let legacy = start.len() >= 4 && start[0] == 0x80 && start[2..4] == [0x8a, 0x0a];
    legacy.then_some(Kind::Legacy)
}

/// Formats of PyTorch.
pub(super) enum Kind {
    Zip,
    Legacy,
}

/// Reads the beginning of a file.
pub(super) fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path)?.take(16).read_to_end(&mut start)?;
    Ok(start)
}
