//! What a pickle describes: objects that refer to each other by number.
//!
//! Numbers in place of pointers make cycles harmless, dropping free of recursion, and sharing free of charge.

use burn::tensor::{BoolStore, DType};

/// A plain value, or the number of an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Object(u32),
}

#[derive(Debug)]
pub(super) enum Object {
    Text(String),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// A class or a function, by module and name.
    Global(String, String),
    Storage(Box<Storage>),
    Tensor(Box<View>),
    /// Something that isn't made: the class or function that would have done it, where there is one.
    Opaque(Value),
}

/// A run of elements in the file.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    /// Its name in the file.
    pub(super) key: String,
    pub(super) element: Element,
    /// Number of elements.
    pub(super) len: u64,
}

/// Elements of a storage as a tensor.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) storage: Storage,
    /// First element.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    /// Elements from one index to the next, for each axis.
    pub(super) strides: Vec<usize>,
}

/// Type of a storage's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) size: usize,
    /// `None` where tensors of this type aren't read.
    pub(super) dtype: Option<DType>,
}

impl Element {
    /// Bytes whose type the tensor says.
    pub(super) const UNTYPED: Self = Self {
        size: 1,
        dtype: None,
    };

    fn new(dtype: DType) -> Self {
        Self {
            size: dtype.size(),
            dtype: Some(dtype),
        }
    }

    /// Elements of PyTorch's class `name` of storages.
    pub(super) fn of_storage(name: &str) -> Option<Self> {
        let other = |size| Some(Self { size, dtype: None });
        Some(match name {
            "FloatStorage" => Self::new(DType::F32),
            "DoubleStorage" => Self::new(DType::F64),
            "HalfStorage" => Self::new(DType::F16),
            "BFloat16Storage" => Self::new(DType::BF16),
            "LongStorage" => Self::new(DType::I64),
            "IntStorage" => Self::new(DType::I32),
            "ShortStorage" => Self::new(DType::I16),
            "CharStorage" => Self::new(DType::I8),
            "ByteStorage" => Self::new(DType::U8),
            "BoolStorage" => Self::new(DType::Bool(BoolStore::Native)),
            "UntypedStorage" => Self::UNTYPED,
            "QUInt8Storage" | "QInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => {
                return other(1);
            }
            "QInt32Storage" => return other(4),
            "ComplexFloatStorage" => return other(8),
            "ComplexDoubleStorage" => return other(16),
            _ => return None,
        })
    }

    /// Elements of PyTorch's type `torch.NAME`.
    pub(super) fn of_dtype(name: &str) -> Option<Self> {
        Some(Self::new(match name {
            "float32" => DType::F32,
            "float64" => DType::F64,
            "float16" => DType::F16,
            "bfloat16" => DType::BF16,
            "int64" => DType::I64,
            "int32" => DType::I32,
            "int16" => DType::I16,
            "int8" => DType::I8,
            "uint64" => DType::U64,
            "uint32" => DType::U32,
            "uint16" => DType::U16,
            "uint8" => DType::U8,
            "bool" => DType::Bool(BoolStore::Native),
            _ => return None,
        }))
    }
}

/// All objects of a pickle, and the one that it stands for.
#[derive(Debug)]
pub(super) struct Pickled {
    pub(super) objects: Vec<Object>,
    pub(super) root: Value,
}

impl Pickled {
    pub(super) fn object(&self, value: Value) -> Option<&Object> {
        match value {
            Value::Object(id) => self.objects.get(id as usize),
            _ => None,
        }
    }

    pub(super) fn text(&self, value: Value) -> Option<&str> {
        match self.object(value)? {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        match self.object(value)? {
            Object::Dict(items) => Some(items),
            _ => None,
        }
    }

    /// The last value under `key`.
    pub(super) fn get(&self, dict: &[(Value, Value)], key: &str) -> Option<Value> {
        let mut items = dict.iter().rev();
        let item = items.find(|(name, _)| self.text(*name) == Some(key))?;
        Some(item.1)
    }

    /// What `value` is, for a message.
    pub(super) fn describe(&self, value: Value) -> String {
        match self.object(value) {
            None => "a plain value".into(),
            Some(Object::Text(_)) => "a string".into(),
            Some(Object::List(_)) => "a list".into(),
            Some(Object::Tuple(_)) => "a tuple".into(),
            Some(Object::Dict(_)) => "a dictionary".into(),
            Some(Object::Global(module, name)) => format!("{module}.{name}"),
            Some(Object::Storage(_)) => "a storage".into(),
            Some(Object::Tensor(_)) => "a tensor".into(),
            Some(Object::Opaque(Value::None)) => "an object".into(),
            // Whatever makes an opaque object is a global or opaque without a maker: this ends.
            Some(Object::Opaque(maker)) => match self.object(*maker) {
                Some(Object::Global(module, name)) => format!("made by {module}.{name}"),
                _ => "an object".into(),
            },
        }
    }
}
