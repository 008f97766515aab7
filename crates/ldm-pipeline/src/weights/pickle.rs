//! Python's pickles, as far as PyTorch writes them: tensors and plain values. Nothing is executed.
//!
//! A pickle is a program for a stack machine (Python's `pickletools` documents it). Functions and classes that it names are called by no one: those
//! that rebuild tensors are understood, every other result is an [`Node::Opaque`] that keeps the name. Nodes are numbers into one list, so that
//! neither deep nesting nor shared parts cost more than the pickle itself.

use std::{collections::HashMap, fmt, rc::Rc};

use burn::tensor::{BoolStore, DType};

/// Objects that a pickle may make beyond one per 64 bytes of its file.
const SPARE_OBJECTS: usize = 1 << 17;

/// Number of a [`Node`].
type Id = u32;

/// A value in a pickle.
#[derive(Debug, Clone)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Also bytes that are text, as Python 2 wrote them.
    Text(Rc<str>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function: `module.name`.
    Global(Rc<str>),
    Storage(Storage),
    Tensor(StoredTensor),
    /// Something that only running code could make; the name of its class or function.
    Opaque(Rc<str>),
}

/// A block of numbers in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) dtype: DType,
    pub(super) key: Rc<str>,
    /// Number of elements.
    pub(super) len: usize,
}

/// A view of a [`Storage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredTensor {
    pub(super) storage: Storage,
    /// First element.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// In elements, per axis.
    pub(super) strides: Vec<usize>,
}

/// What a pickle held.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

impl Pickle {
    /// Runs the program `bytes`, which came from a file of `file_len` bytes.
    pub(super) fn read(bytes: &[u8], file_len: u64) -> Result<Self, String> {
        let mut machine = Machine {
            input: Input { bytes, at: 0 },
            nodes: Vec::new(),
            most: SPARE_OBJECTS + usize::try_from(file_len / 64).unwrap_or(usize::MAX / 2),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = machine
            .run()
            .map_err(|problem| format!("{problem}, at byte {} of its pickle", machine.input.at))?;
        Ok(Self {
            nodes: machine.nodes,
            root,
        })
    }

    pub(super) fn root(&self) -> &Node {
        self.node(self.root)
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// The value of a text key in a dictionary.
    pub(super) fn get(&self, dict: &Node, key: &str) -> Option<&Node> {
        let Node::Dict(items) = dict else { return None };
        let found = items.iter().rev().find(|(id, _)| matches!(self.node(*id), Node::Text(text) if &**text == key));
        found.map(|(_, value)| self.node(*value))
    }

    /// Text keys of a dictionary and their values.
    pub(super) fn items<'a>(&'a self, dict: &'a Node) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let items: &[(Id, Id)] = match dict {
            Node::Dict(items) => items,
            _ => &[],
        };
        items.iter().filter_map(|&(key, value)| match self.node(key) {
            Node::Text(key) => Some((&**key, self.node(value))),
            _ => None,
        })
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let taken = (self.at.checked_add(count)).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or("it ends in the middle of a value")?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A length in 1, 4 or 8 bytes.
    fn length(&mut self, width: usize) -> Result<usize, String> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| "a length is out of range".into())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let end = end.ok_or("it ends in the middle of a line")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a line is not text".into())
    }
}

struct Machine<'a> {
    input: Input<'a>,
    nodes: Vec<Node>,
    most: usize,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let op = self.input.u8()?;
            match op {
                b'.' => return self.pop(),
                // Protocol and frames.
                0x80 => drop(self.input.u8()?),
                0x95 => drop(self.input.take(8)?),
                // Plain values.
                b'N' => self.push(Node::None)?,
                0x88 => self.push(Node::Bool(true))?,
                0x89 => self.push(Node::Bool(false))?,
                b'J' => {
                    let value = i32::from_le_bytes(self.input.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'K' => {
                    let value = self.input.u8()?;
                    self.push(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.input.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                0x8a => self.long(1)?,
                0x8b => self.long(4)?,
                b'I' => {
                    let node = match self.input.line()? {
                        "00" => Node::Bool(false),
                        "01" => Node::Bool(true),
                        line => Node::Int(parse(line)?),
                    };
                    self.push(node)?;
                }
                b'L' => {
                    let line = self.input.line()?;
                    let value = parse(line.trim_end_matches('L'))?;
                    self.push(Node::Int(value))?;
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.input.array()?);
                    self.push(Node::Float(value))?;
                }
                b'F' => {
                    let value = parse(self.input.line()?)?;
                    self.push(Node::Float(value))?;
                }
                b'U' | b'C' | 0x8c => self.text(1)?,
                b'T' | b'X' | b'B' => self.text(4)?,
                0x8d | 0x8e | 0x96 => self.text(8)?,
                b'S' | b'V' => {
                    let line = self.input.line()?;
                    let quoted = line.trim_matches(|c| c == '\'' || c == '"');
                    self.push(Node::Text(quoted.into()))?;
                }
                // Containers.
                b'(' => self.marks.push(self.stack.len()),
                b']' => self.push(Node::List(Vec::new()))?,
                b'}' => self.push(Node::Dict(Vec::new()))?,
                b')' => self.push(Node::Tuple(Vec::new()))?,
                0x8f => self.push(Node::List(Vec::new()))?,
                b'l' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items))?;
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                0x85..=0x87 => {
                    let items = self.pop_many(usize::from(op - 0x84))?;
                    self.push(Node::Tuple(items))?;
                }
                b'd' => {
                    let items = pairs(self.pop_mark()?)?;
                    self.push(Node::Dict(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let items = self.pop_many(2)?;
                    self.set_items(items)?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(items)?;
                }
                // The stack and the memo.
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'q' => {
                    let key = self.input.u8()?.into();
                    self.memorise(key)?;
                }
                b'r' => {
                    let key = self.input.u32()?;
                    self.memorise(key)?;
                }
                b'p' => {
                    let key = parse(self.input.line()?)?;
                    self.memorise(key)?;
                }
                0x94 => {
                    let key = self.memo.len() as u32;
                    self.memorise(key)?;
                }
                b'h' => {
                    let key = self.input.u8()?.into();
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.input.u32()?;
                    self.recall(key)?;
                }
                b'g' => {
                    let key = parse(self.input.line()?)?;
                    self.recall(key)?;
                }
                // Classes, functions and what they make.
                b'c' => {
                    let name = format!("{}.{}", self.input.line()?, self.input.line()?);
                    self.push(Node::Global(name.into()))?;
                }
                0x93 => {
                    let names = self.pop_many(2)?;
                    let [Node::Text(module), Node::Text(name)] =
                        [0, 1].map(|index| &self.nodes[names[index] as usize])
                    else {
                        return Err("the name of a class is no text".into());
                    };
                    let name = format!("{module}.{name}").into();
                    self.push(Node::Global(name))?;
                }
                b'R' | 0x81 => {
                    let parts = self.pop_many(2)?;
                    let node = self.call(parts[0], parts[1])?;
                    self.push(node)?;
                }
                0x92 => {
                    let parts = self.pop_many(3)?;
                    let node = Node::Opaque(self.name(parts[0]));
                    self.push(node)?;
                }
                b'i' => {
                    let name = format!("{}.{}", self.input.line()?, self.input.line()?);
                    self.pop_mark()?;
                    self.push(Node::Opaque(name.into()))?;
                }
                b'o' => {
                    let parts = self.pop_mark()?;
                    let class = *parts.first().ok_or("an object has no class")?;
                    let node = Node::Opaque(self.name(class));
                    self.push(node)?;
                }
                // An object's state: of no use without its class.
                b'b' => drop(self.pop()?),
                b'Q' => {
                    let id = self.pop()?;
                    let node = self.persistent(id)?;
                    self.push(node)?;
                }
                other => return Err(format!("it has the operation {other:#04x}, which PyTorch doesn't write")),
            }
        }
    }

    fn push(&mut self, node: Node) -> Result<(), String> {
        if self.nodes.len() >= self.most {
            return Err("it makes more objects than a file of its size could need".into());
        }
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
        Ok(())
    }

    fn top(&self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&id) if self.stack.len() > floor => Ok(id),
            _ => Err("it takes a value that isn't there".into()),
        }
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= floor => Ok(self.stack.split_off(start)),
            _ => Err("it takes values that aren't there".into()),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let start = self.marks.pop().ok_or("it takes a mark that isn't there")?;
        Ok(self.stack.split_off(start))
    }

    fn memorise(&mut self, key: u32) -> Result<(), String> {
        let top = self.top()?;
        if self.memo.len() >= self.most {
            return Err("it keeps more objects than a file of its size could need".into());
        }
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let id = *self.memo.get(&key).ok_or("it recalls an object that it never kept")?;
        self.stack.push(id);
        Ok(())
    }

    fn text(&mut self, width: usize) -> Result<(), String> {
        let length = self.input.length(width)?;
        let bytes = self.input.take(length)?;
        // Bytes that are no text, such as a numpy array's, are of no interest.
        self.push(match std::str::from_utf8(bytes) {
            Ok(text) => Node::Text(text.into()),
            Err(_) => Node::Opaque("bytes".into()),
        })
    }

    fn long(&mut self, width: usize) -> Result<(), String> {
        let length = self.input.length(width)?;
        let bytes = self.input.take(length)?;
        // One that doesn't fit is a random generator's state or the like.
        let node = if length <= 8 {
            let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
            let mut all = [fill; 8];
            all[..length].copy_from_slice(bytes);
            Node::Int(i64::from_le_bytes(all))
        } else {
            Node::Opaque("int".into())
        };
        self.push(node)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::List(list) => list.extend(items),
            Node::Opaque(_) => {}
            _ => return Err("it appends to something that is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<(), String> {
        let items = pairs(items)?;
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::Dict(dict) => dict.extend(items),
            Node::Opaque(_) => {}
            _ => return Err("it sets an item of something that is no dictionary".into()),
        }
        Ok(())
    }

    fn name(&self, id: Id) -> Rc<str> {
        match &self.nodes[id as usize] {
            Node::Global(name) | Node::Opaque(name) => name.clone(),
            _ => "an unnamed object".into(),
        }
    }

    /// The result of a function or class, if it is one of those that are understood.
    fn call(&self, function: Id, arguments: Id) -> Result<Node, String> {
        let name = self.name(function);
        let Node::Tuple(arguments) = &self.nodes[arguments as usize] else {
            return Err(format!("the arguments of {name} are no tuple"));
        };
        Ok(match &*name {
            "collections.OrderedDict" if arguments.is_empty() => Node::Dict(Vec::new()),
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
                Node::Tensor(self.tensor(arguments)?)
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                match arguments.first().map(|&id| &self.nodes[id as usize]) {
                    Some(Node::Tensor(tensor)) => Node::Tensor(tensor.clone()),
                    _ => return Err("a parameter has no tensor".into()),
                }
            }
            _ => Node::Opaque(name),
        })
    }

    fn tensor(&self, arguments: &[Id]) -> Result<StoredTensor, String> {
        let argument = |index: usize| arguments.get(index).map(|&id| &self.nodes[id as usize]);
        let (Some(Node::Storage(storage)), Some(Node::Int(offset))) = (argument(0), argument(1))
        else {
            return Err("a tensor has no storage".into());
        };
        let tensor = StoredTensor {
            storage: storage.clone(),
            offset: usize::try_from(*offset).map_err(|_| "a tensor starts before its storage")?,
            shape: self.sizes(argument(2))?,
            strides: self.sizes(argument(3))?,
        };
        tensor.check()?;
        Ok(tensor)
    }

    fn sizes(&self, node: Option<&Node>) -> Result<Vec<usize>, String> {
        let Some(Node::Tuple(items) | Node::List(items)) = node else {
            return Err("a tensor has no shape".into());
        };
        (items.iter())
            .map(|&id| match self.nodes[id as usize] {
                Node::Int(size) => usize::try_from(size).map_err(|_| "a tensor's size is negative".into()),
                _ => Err("a tensor's size is no integer".into()),
            })
            .collect()
    }

    /// `('storage', class, key, device, length)`.
    fn persistent(&self, id: Id) -> Result<Node, String> {
        let Node::Tuple(parts) = &self.nodes[id as usize] else {
            return Err("it refers to something outside of it that is no storage".into());
        };
        let part = |index: usize| parts.get(index).map(|&id| &self.nodes[id as usize]);
        let (Some(Node::Text(kind)), Some(class), Some(Node::Text(key)), Some(Node::Int(len))) =
            (part(0), part(1), part(2), part(4))
        else {
            return Err("it refers to a storage in an unknown way".into());
        };
        let class = match class {
            Node::Global(class) => class.clone(),
            _ => return Err("the type of a storage is no class".into()),
        };
        if &**kind != "storage" {
            return Err(format!("it refers to a {kind}, not to a storage"));
        }
        Ok(Node::Storage(Storage {
            dtype: storage_type(&class)
                .ok_or_else(|| format!("it has a storage of the unknown type {class}"))?,
            key: key.clone(),
            len: usize::try_from(*len).map_err(|_| "the length of a storage is negative")?,
        }))
    }
}

impl StoredTensor {
    /// Number of elements.
    pub(super) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether every element lies in the storage.
    fn check(&self) -> Result<(), String> {
        if self.shape.len() != self.strides.len() {
            return Err("a tensor has not as many strides as axes".into());
        }
        let count = (self.shape.iter()).try_fold(1usize, |n, &size| n.checked_mul(size));
        let count = count.ok_or("a tensor's size is out of range")?;
        if count == 0 {
            return Ok(());
        }
        let last = (self.shape.iter().zip(&self.strides)).try_fold(self.offset, |last, (&size, &stride)| {
            last.checked_add((size - 1).checked_mul(stride)?)
        });
        match last {
            Some(last) if last < self.storage.len => Ok(()),
            _ => Err("a tensor reaches beyond its storage".into()),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opaque(name) => write!(f, "an object of {name}"),
            Self::Global(name) => write!(f, "the class {name}"),
            Self::Dict(_) => f.write_str("a dictionary"),
            Self::List(_) | Self::Tuple(_) => f.write_str("a list"),
            Self::Tensor(_) | Self::Storage(_) => f.write_str("a tensor"),
            _ => f.write_str("a plain value"),
        }
    }
}

fn storage_type(class: &str) -> Option<DType> {
    Some(match class.strip_prefix("torch.")? {
        "FloatStorage" => DType::F32,
        "DoubleStorage" => DType::F64,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "CharStorage" => DType::I8,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}

fn pairs(items: Vec<Id>) -> Result<Vec<(Id, Id)>, String> {
    if items.len() % 2 != 0 {
        return Err("a key has no value".into());
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is no number"))
}
