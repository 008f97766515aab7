//! The machine that a pickle is a program for, without any of its powers: nothing is imported and nothing called.
//!
//! Understood are the instructions that Python's pickler writes for protocols 2 to 5. Calls of the functions with which
//! PyTorch rebuilds tensors become [`View`](super::object::View)s, `OrderedDict`s become dictionaries; every other object
//! is only noted.

use std::collections::HashMap;

use super::super::WeightsError;
use super::super::source::Budget;
use super::input::Input;
use super::object::{Element, Object, Pickled, Storage, Value};

/// Memory for an object: its place in a growing list.
const OBJECT_COST: usize = 3 * size_of::<Object>();
/// Memory for a value in a growing list, or in the memo.
const VALUE_COST: usize = 4 * size_of::<Value>();
/// Longest name of a module or class.
const MAX_NAME: usize = 1 << 10;

/// Runs the pickle at the beginning of `input` to its end.
pub(super) fn run(input: &mut Input, budget: &mut Budget) -> Result<Pickled, WeightsError> {
    let mut machine = Machine {
        input,
        budget,
        objects: Vec::new(),
        stack: Vec::new(),
        tallest: 0,
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    while machine.step()? {}
    let root = machine.pop()?;
    Ok(Pickled {
        objects: machine.objects,
        root,
    })
}

pub(super) struct Machine<'a, 'b> {
    input: &'a mut Input<'b>,
    budget: &'a mut Budget,
    pub(super) objects: Vec<Object>,
    stack: Vec<Value>,
    /// Size of the stack that is paid for.
    tallest: usize,
    /// Sizes of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl Machine<'_, '_> {
    /// Executes an instruction; `false` after the last.
    fn step(&mut self) -> Result<bool, WeightsError> {
        match self.input.byte()? {
            b'.' => return Ok(false),
            // PROTO, FRAME: nothing depends on either.
            0x80 => self.input.skip(1)?,
            0x95 => self.input.skip(8)?,
            b'(' => {
                self.charge(VALUE_COST)?;
                self.marks.push(self.stack.len());
            }
            b'0' => {
                // The mark counts as an item of the stack.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                self.pop_to_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }

            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' => {
                let number = i32::from_le_bytes(self.input.array()?);
                self.push(Value::Int(number.into()))?;
            }
            b'K' => {
                let number = self.input.byte()?;
                self.push(Value::Int(number.into()))?;
            }
            b'M' => {
                let number = u16::from_le_bytes(self.input.array()?);
                self.push(Value::Int(number.into()))?;
            }
            0x8a => {
                let len = self.input.byte()?;
                self.long(len.into())?;
            }
            0x8b => {
                let len = u32::from_le_bytes(self.input.array()?);
                self.long(len.into())?;
            }
            b'G' => {
                let number = f64::from_be_bytes(self.input.array()?);
                self.push(Value::Float(number))?;
            }

            b'U' | 0x8c => {
                let len = self.input.byte()?;
                self.text(len.into())?;
            }
            b'T' | b'X' => {
                let len = u32::from_le_bytes(self.input.array()?);
                self.text(len.into())?;
            }
            0x8d => {
                let len = u64::from_le_bytes(self.input.array()?);
                self.text(len)?;
            }
            b'C' => {
                let len = self.input.byte()?;
                self.bytes(len.into())?;
            }
            b'B' => {
                let len = u32::from_le_bytes(self.input.array()?);
                self.bytes(len.into())?;
            }
            0x8e | 0x96 => {
                let len = u64::from_le_bytes(self.input.array()?);
                self.bytes(len)?;
            }

            b']' => self.make(Object::List(Vec::new()))?,
            b'}' => self.make(Object::Dict(Vec::new()))?,
            b')' => self.make(Object::Tuple(Vec::new()))?,
            // Sets hold nothing that anybody asks for.
            0x8f => self.make(Object::Opaque(Value::None))?,
            b'l' => {
                let items = self.pop_to_mark()?;
                self.make(Object::List(items))?;
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.make(Object::Tuple(items))?;
            }
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b'd' => {
                let items = self.pop_to_mark()?;
                self.make(Object::Dict(Vec::new()))?;
                self.set_items(items)?;
            }
            0x91 => {
                self.pop_to_mark()?;
                self.make(Object::Opaque(Value::None))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(items)?;
            }
            0x90 => {
                self.pop_to_mark()?;
            }

            b'c' => self.global_of_lines()?,
            0x93 => {
                let name = self.pop()?;
                let module = self.pop()?;
                let (Some(module), Some(name)) = (self.cloned(module), self.cloned(name)) else {
                    return Err(self.damaged("a global without a name"));
                };
                self.global(module, name)?;
            }
            b'R' => {
                let arguments = self.pop()?;
                let function = self.pop()?;
                let made = self.call(function, arguments)?;
                self.make(made)?;
            }
            // NEWOBJ, NEWOBJ_EX: an object of a class.
            0x81 => {
                self.pop()?;
                let class = self.pop()?;
                self.make(Object::Opaque(class))?;
            }
            0x92 => {
                self.pop()?;
                self.pop()?;
                let class = self.pop()?;
                self.make(Object::Opaque(class))?;
            }
            // OBJ, INST: the same in old pickles of old classes.
            b'o' => {
                let class = self.pop_to_mark()?.first().copied();
                self.make(Object::Opaque(class.unwrap_or(Value::None)))?;
            }
            b'i' => {
                self.global_of_lines()?;
                let class = self.pop()?;
                self.pop_to_mark()?;
                self.make(Object::Opaque(class))?;
            }
            // BUILD: attributes, of which neither tensors nor dictionaries have any that matter.
            b'b' => {
                self.pop()?;
                self.top()?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.make(storage)?;
            }

            b'q' => {
                let index = self.input.byte()?;
                self.remember(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.input.array()?);
                self.remember(index)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let index = self.input.byte()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.input.array()?);
                self.recall(index)?;
            }
            other => {
                return Err(self.damaged(&format!(
                    "instruction {other:#04x} is none that torch.save writes"
                )));
            }
        }
        Ok(true)
    }

    pub(super) fn charge(&mut self, bytes: usize) -> Result<(), WeightsError> {
        self.budget.charge(self.input.source, bytes)
    }

    pub(super) fn damaged(&self, problem: &str) -> WeightsError {
        self.input
            .source
            .invalid(format!("damaged pickle: {problem}"))
    }

    fn push(&mut self, value: Value) -> Result<(), WeightsError> {
        if self.stack.len() == self.tallest {
            self.charge(VALUE_COST)?;
            self.tallest += 1;
        }
        self.stack.push(value);
        Ok(())
    }

    /// Takes the topmost value, of those above the last mark.
    fn pop(&mut self) -> Result<Value, WeightsError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(value) if self.stack.len() >= floor => Ok(value),
            _ => Err(self.damaged("a value is missing")),
        }
    }

    fn top(&self) -> Result<Value, WeightsError> {
        let top = self.stack.last().copied();
        top.ok_or_else(|| self.damaged("a value is missing"))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, WeightsError> {
        let mark = self.marks.pop();
        let mark = mark.ok_or_else(|| self.damaged("a mark is missing"))?;
        self.charge(VALUE_COST * (self.stack.len() - mark))?;
        Ok(self.stack.split_off(mark))
    }

    /// Pushes a new object.
    fn make(&mut self, object: Object) -> Result<(), WeightsError> {
        self.charge(OBJECT_COST)?;
        let id = self.objects.len() as u32;
        self.objects.push(object);
        self.push(Value::Object(id))
    }

    fn tuple(&mut self, len: usize) -> Result<(), WeightsError> {
        self.charge(VALUE_COST * len)?;
        let mut items = vec![Value::None; len];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        self.make(Object::Tuple(items))
    }

    /// An integer of `len` bytes. What doesn't fit 64 bits is of no use here.
    fn long(&mut self, len: u64) -> Result<(), WeightsError> {
        if len > 8 {
            self.input.skip(len)?;
            return self.make(Object::Opaque(Value::None));
        }
        let bytes = self.input.take(len)?;
        let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut number = [if negative { 0xff } else { 0 }; 8];
        number[..bytes.len()].copy_from_slice(&bytes);
        self.push(Value::Int(i64::from_le_bytes(number)))
    }

    fn text(&mut self, len: u64) -> Result<(), WeightsError> {
        self.charge(usize::try_from(len).unwrap_or(usize::MAX))?;
        let bytes = self.input.take(len)?;
        // Python 2 wrote strings of bytes, which needn't be text.
        self.make(String::from_utf8(bytes).map_or(Object::Opaque(Value::None), Object::Text))
    }

    fn bytes(&mut self, len: u64) -> Result<(), WeightsError> {
        self.input.skip(len)?;
        self.make(Object::Opaque(Value::None))
    }

    fn append(&mut self, items: Vec<Value>) -> Result<(), WeightsError> {
        self.charge(VALUE_COST * items.len())?;
        let Value::Object(id) = self.top()? else {
            return Err(self.damaged("an item of no list"));
        };
        match &mut self.objects[id as usize] {
            Object::List(list) => list.extend(items),
            Object::Opaque(_) => {}
            _ => return Err(self.damaged("an item of no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), WeightsError> {
        self.charge(VALUE_COST * items.len())?;
        let Value::Object(id) = self.top()? else {
            return Err(self.damaged("an entry of no dictionary"));
        };
        if !items.len().is_multiple_of(2) {
            return Err(self.damaged("a key without a value"));
        }
        match &mut self.objects[id as usize] {
            Object::Dict(dict) => dict.extend(items.chunks_exact(2).map(|item| (item[0], item[1]))),
            Object::Opaque(_) => {}
            _ => return Err(self.damaged("an entry of no dictionary")),
        }
        Ok(())
    }

    fn remember(&mut self, index: u32) -> Result<(), WeightsError> {
        self.charge(VALUE_COST)?;
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), WeightsError> {
        match self.memo.get(&index).copied() {
            Some(value) => self.push(value),
            None => Err(self.damaged("a reference to nothing")),
        }
    }

    fn global_of_lines(&mut self) -> Result<(), WeightsError> {
        let module = self.input.line(MAX_NAME)?;
        let name = self.input.line(MAX_NAME)?;
        match (String::from_utf8(module), String::from_utf8(name)) {
            (Ok(module), Ok(name)) => self.global(module, name),
            _ => Err(self.damaged("a global without a name")),
        }
    }

    fn global(&mut self, module: String, name: String) -> Result<(), WeightsError> {
        self.charge(module.capacity() + name.capacity())?;
        self.make(Object::Global(module, name))
    }

    /// A copy of a string, paid for.
    fn cloned(&mut self, value: Value) -> Option<String> {
        let Object::Text(text) = self.object(value)? else {
            return None;
        };
        let text = text.clone();
        self.charge(text.len()).ok()?;
        Some(text)
    }

    pub(super) fn object(&self, value: Value) -> Option<&Object> {
        match value {
            Value::Object(id) => self.objects.get(id as usize),
            _ => None,
        }
    }

    pub(super) fn tuple_of(&self, value: Value) -> Option<&[Value]> {
        match self.object(value)? {
            Object::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// What a persistent id of PyTorch names: a storage.
    fn storage(&mut self, id: Value) -> Result<Object, WeightsError> {
        let no_storage = |machine: &Self| machine.damaged("a reference to no storage of PyTorch");
        let (class, key, len) = match self.tuple_of(id) {
            Some(&[kind, class, key, _, Value::Int(len), ref view @ ..]) if matches!(self.object(kind), Some(Object::Text(kind)) if kind == "storage") =>
            {
                // Only PyTorch's old format has a sixth item: which part of another storage this is.
                if view.iter().any(|view| *view != Value::None) {
                    return Err(self.damaged("a storage that is part of another"));
                }
                (class, key, len)
            }
            _ => return Err(no_storage(self)),
        };
        let element = match self.object(class) {
            Some(Object::Global(_, name)) => Element::of_storage(name),
            _ => None,
        };
        let (Some(element), Ok(len)) = (element, u64::try_from(len)) else {
            return Err(no_storage(self));
        };
        // Old files number their storages, new ones name them.
        let key = match key {
            Value::Int(key) => key.to_string(),
            key => self.cloned(key).ok_or_else(|| no_storage(self))?,
        };
        self.charge(size_of::<Storage>())?;
        Ok(Object::Storage(Box::new(Storage { key, element, len })))
    }
}
