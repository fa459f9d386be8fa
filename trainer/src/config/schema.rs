//! Sections of a configuration as data: each key with its meaning, its default and its bounds in one place, from which come the reader, the messages, and the commented
//! default that `--print-config` writes.

use ir::diagnostic::{Error, Span};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A type of values.
pub trait Value: Sized {
    /// What it is, for messages: `a whole number`.
    const KIND: &'static str;
    /// From TOML.
    fn take(v: &DeValue) -> Option<Self>;
    /// As TOML.
    fn show(&self) -> String;
}

impl Value for u64 {
    const KIND: &'static str = "a whole number";
    fn take(v: &DeValue) -> Option<u64> {
        let DeValue::Integer(i) = v else { return None };
        u64::from_str_radix(i.as_str(), i.radix()).ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}
impl Value for f64 {
    const KIND: &'static str = "a number";
    fn take(v: &DeValue) -> Option<f64> {
        match v {
            DeValue::Float(f) => f.as_str().parse().ok(),
            DeValue::Integer(i) if i.radix() == 10 => i.as_str().parse().ok(),
            _ => None,
        }
    }
    fn show(&self) -> String {
        format!("{self:?}")
    }
}
impl Value for bool {
    const KIND: &'static str = "true or false";
    fn take(v: &DeValue) -> Option<bool> {
        v.as_bool()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}
impl Value for String {
    const KIND: &'static str = "a text in quotes";
    fn take(v: &DeValue) -> Option<String> {
        v.as_str().map(String::from)
    }
    fn show(&self) -> String {
        toml::Value::from(self.as_str()).to_string()
    }
}
impl<T: Value> Value for Vec<T> {
    const KIND: &'static str = "a list";
    fn take(v: &DeValue) -> Option<Vec<T>> {
        v.as_array()?.iter().map(|v| T::take(v.get_ref())).collect()
    }
    fn show(&self) -> String {
        format!("[{}]", self.iter().map(Value::show).collect::<Vec<_>>().join(", "))
    }
}

/// A key: what the printed default says of it.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What it may be; empty if everything of its type.
    pub bounds: &'static str,
    /// The default, as TOML.
    pub default: String,
}

/// A table of keys.
pub trait Section: Default {
    /// Its name.
    const NAME: &'static str;
    /// What it is about.
    const ABOUT: &'static str;
    /// All keys.
    fn keys() -> Vec<Key>;
    /// Sets one key.
    ///
    /// # Errors
    /// None where there is no such key; else what the value should be.
    fn set(&mut self, key: &str, value: &DeValue) -> Option<Result<(), String>>;
}

/// Declares a section: a struct whose documentation, defaults and bounds are also data.
macro_rules! section {
    ($(#[doc = $about:literal])+ $struct:ident = $section:literal { $($(#[doc = $meaning:literal])+ $key:ident: $ty:ty = $default:expr, $bounds:literal, |$x:ident| $check:expr;)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $struct {
            $($(#[doc = $meaning])+ pub $key: $ty,)+
        }
        impl Default for $struct {
            fn default() -> $struct {
                $struct { $($key: $default,)+ }
            }
        }
        impl $crate::config::schema::Section for $struct {
            const NAME: &'static str = $section;
            const ABOUT: &'static str = concat!($($about),+);
            fn keys() -> Vec<$crate::config::schema::Key> {
                let d = $struct::default();
                vec![$($crate::config::schema::Key {
                    name: stringify!($key),
                    meaning: concat!($($meaning),+),
                    bounds: $bounds,
                    default: $crate::config::schema::Value::show(&d.$key),
                }),+]
            }
            fn set(&mut self, key: &str, value: &toml::de::DeValue) -> Option<Result<(), String>> {
                match key {
                    $(stringify!($key) => Some(match <$ty as $crate::config::schema::Value>::take(value) {
                        None => Err(format!("must be {}", <$ty as $crate::config::schema::Value>::KIND)),
                        Some(v) => {
                            let $x = &v;
                            if $check { self.$key = v; Ok(()) } else { Err(format!("must be {}", $bounds)) }
                        }
                    }),)+
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use section;

/// The name in `all` that is nearest to `name`, if it is near.
pub fn nearest<'a>(name: &str, all: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = all.map(|n| (strsim::damerau_levenshtein(name, n), n));
    scored.min().filter(|(d, n)| *d <= 1.max(name.len().max(n.len()) / 3)).map(|(_, n)| n)
}

/// `1..` as the renderer wants it.
pub fn span(r: std::ops::Range<usize>) -> Span {
    Span { start: r.start, end: r.end }
}

/// Reads a section; what is not in the table keeps its default. Returns the keys that were set.
pub fn read<S: Section>(section: &mut S, table: &DeTable, errors: &mut Vec<Error>) -> Vec<(String, Span)> {
    let mut set = vec![];
    for (key, value) in table {
        match section.set(key.get_ref(), value.get_ref()) {
            None => {
                let keys = S::keys();
                let hint = match nearest(key.get_ref(), keys.iter().map(|k| k.name)) {
                    Some(n) => format!("did you mean `{n}`?"),
                    None => format!("the keys of [{}] are {}", S::NAME, keys.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")),
                };
                errors.push(Error::new(format!("no key `{}` in [{}]", key.get_ref(), S::NAME)).at(span(key.span())).hint(hint));
            }
            Some(Err(why)) => errors.push(Error::new(format!("`{}` in [{}] {why}", key.get_ref(), S::NAME)).at(span(value.span()))),
            Some(Ok(())) => set.push((key.get_ref().to_string(), span(key.span()))),
        }
    }
    set
}

/// The table under a spanned value.
///
/// # Errors
/// A value that is none.
pub fn table<'a, 'i>(name: &str, v: &'a Spanned<DeValue<'i>>) -> Result<&'a DeTable<'i>, Error> {
    v.get_ref().as_table().ok_or_else(|| Error::new(format!("`{name}` must be a table, `[{name}]`")).at(span(v.span())))
}

/// Words in lines of `width`, each behind `# `.
pub fn comment(text: &str, width: usize) -> String {
    let (mut out, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + word.chars().count() + 3 > width {
            out += &format!("# {line}\n");
            line.clear();
        }
        line += if line.is_empty() { "" } else { " " };
        line += word;
    }
    out + &format!("# {line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_near() {
        assert_eq!(nearest("iteratons", ["iterations", "batch"].into_iter()), Some("iterations"));
        assert_eq!(nearest("learning", ["iterations", "batch"].into_iter()), None);
        assert_eq!(nearest("lr", ["l", "rate"].into_iter()), Some("l"));
    }
}
