//! The form of a story, from the structs that read it: keys, types and meanings are those of `sim/src`.
//!
//! What is read off the source is then put to the reader: a story with the keys that the page names is taken, one
//! without a key that it says is needed is not.

use ringfence_sim::scenario::Scenario;
use syn::{Attribute, Expr, ExprLit, Field, Fields, Item, ItemEnum, ItemStruct, Lit, Meta, Type};

use crate::{part, read, table};

const PAGE: &str = "docs/simulator.md";

/// The text of doc comments.
fn docs(attributes: &[Attribute]) -> String {
    let line = |attribute: &Attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    };
    attributes.iter().filter_map(line).collect::<Vec<_>>().join(" ")
}

/// Whether serde is told so, and the text that it is told, if any.
fn serde(attributes: &[Attribute], what: &str) -> Option<Option<String>> {
    let mut found = None;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        let _ = attribute.parse_nested_meta(|meta| {
            let value = meta.value().ok().and_then(|value| value.parse::<syn::LitStr>().ok());
            if meta.path.is_ident(what) {
                found = Some(value.map(|text| text.value()));
            }
            Ok(())
        });
    }
    found
}

/// `PowerLoss` as `power-loss`.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.extend(c.to_lowercase());
    }
    text
}

/// One key of a table.
struct Key {
    name: String,
    optional: bool,
    /// The name of its type, without `Option` and `Vec`.
    of: String,
    list: bool,
    docs: String,
}

/// The last word of a type, and the type within its brackets.
fn inside(ty: &Type) -> (String, Option<&Type>) {
    let Type::Path(path) = ty else { panic!("a type that is no path") };
    let last = path.path.segments.last().unwrap();
    let within = match &last.arguments {
        syn::PathArguments::AngleBracketed(of) => match of.args.first() {
            Some(syn::GenericArgument::Type(ty)) => Some(ty),
            _ => None,
        },
        _ => None,
    };
    (last.ident.to_string(), within)
}

fn key(field: &Field, defaults: bool) -> Key {
    let (mut of, mut within) = inside(&field.ty);
    let (mut optional, mut list) = (defaults || serde(&field.attrs, "default").is_some(), false);
    while let Some(ty) = within {
        optional |= of == "Option";
        list |= of == "Vec";
        (of, within) = inside(ty);
    }
    let name = serde(&field.attrs, "rename").flatten().unwrap_or_else(|| field.ident.as_ref().unwrap().to_string());
    Key { name, optional, of, list, docs: docs(&field.attrs) }
}

/// What `sim/src` says.
struct Source {
    items: Vec<Item>,
}

impl Source {
    fn read() -> Source {
        let files = ["sim/src/fault.rs", "sim/src/scenario.rs"];
        let items = files.iter().flat_map(|path| syn::parse_file(&read(path)).expect("it compiles").items);
        Source { items: items.collect() }
    }

    fn choice(&self, name: &str) -> Option<&ItemEnum> {
        self.items.iter().find_map(|item| match item {
            Item::Enum(of) if of.ident == name => Some(of),
            _ => None,
        })
    }

    fn record(&self, name: &str) -> &ItemStruct {
        let found = self.items.iter().find_map(|item| match item {
            Item::Struct(of) if of.ident == name => Some(of),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("there is no struct {name}"))
    }

    /// The keys of a table.
    fn keys(&self, name: &str) -> Vec<Key> {
        let of = self.record(name);
        let defaults = serde(&of.attrs, "default").is_some();
        of.fields.iter().map(|field| key(field, defaults)).collect()
    }

    /// The kinds of a fault or an act: name, keys, what it is.
    fn kinds(&self, name: &str) -> Vec<(String, Vec<Key>, String)> {
        let kind = |variant: &syn::Variant| {
            let keys = match &variant.fields {
                Fields::Named(fields) => fields.named.iter().map(|field| key(field, false)).collect(),
                _ => Vec::new(),
            };
            let renamed = serde(&variant.attrs, "rename").flatten();
            let kind = renamed.unwrap_or_else(|| kebab(&variant.ident.to_string()));
            (kind, keys, docs(&variant.attrs))
        };
        self.choice(name).expect("an enum").variants.iter().map(kind).collect()
    }

    /// The words of a key that takes one of some.
    fn words(&self, of: &str) -> Vec<(String, String)> {
        let variants = self.choice(of).into_iter().flat_map(|of| &of.variants);
        variants.map(|variant| (kebab(&variant.ident.to_string()), docs(&variant.attrs))).collect()
    }

    fn kind(&self, key: &Key) -> String {
        let one = match key.of.as_str() {
            "String" => "text".to_owned(),
            "bool" => "true or false".to_owned(),
            "f64" => "number".to_owned(),
            "u32" | "u64" | "i64" | "usize" => "whole number".to_owned(),
            "Fault" => "[fault](#faults)".to_owned(),
            "Act" => "[act](#acts)".to_owned(),
            _ if key.list => return "tables, see below".to_owned(),
            _ if self.choice(&key.of).is_none() => "table, see below".to_owned(),
            of => self.words(of).iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        };
        if key.list { format!("list of {one}") } else { one }
    }

    fn table(&self, name: &str) -> String {
        let row = |key: &Key| vec![format!("`{}`", key.name), self.kind(key), needed(key).to_owned(), key.docs.clone()];
        table(&["key", "takes", "needed", "meaning"], &self.keys(name).iter().map(row).collect::<Vec<_>>())
    }

    fn kinds_table(&self, name: &str, tag: &str) -> String {
        let row = |(kind, keys, docs): &(String, Vec<Key>, String)| {
            let keys = keys.iter().map(|key| {
                // What a name or a word of a list means is clear; what a number counts is not.
                let plain = key.of == "String" || self.choice(&key.of).is_some();
                let docs = if plain { String::new() } else { format!(" ({})", key.docs.trim_end_matches('.')) };
                let brackets = if key.optional { ("[", "]") } else { ("", "") };
                format!("{}`{}`: {}{docs}{}", brackets.0, key.name, self.kind(key), brackets.1)
            });
            vec![format!("`{kind}`"), keys.collect::<Vec<_>>().join("; "), docs.clone()]
        };
        table(
            &[tag, "keys, those in brackets may be left out", "what happens"],
            &self.kinds(name).iter().map(row).collect::<Vec<_>>(),
        )
    }

    /// Some value that a key takes, as TOML; the words of a choice by number.
    fn value(&self, key: &Key, nth: usize) -> String {
        match key.of.as_str() {
            "String" if key.name == "vm" => "\"vm-0\"".to_owned(),
            "String" => "\"host-0\"".to_owned(),
            "bool" => "true".to_owned(),
            "u32" | "u64" | "i64" | "usize" => "1".to_owned(),
            of => format!("\"{}\"", self.words(of)[nth].0),
        }
    }

    fn choices(&self, key: &Key) -> usize {
        self.words(&key.of).len().max(1)
    }
}

fn needed(key: &Key) -> &'static str {
    if key.optional || key.list { "" } else { "yes" }
}

#[test]
fn the_form_of_a_story_on_the_page_is_the_readers() {
    let source = Source::read();
    part(PAGE, "story", &source.table("Scenario"));
    part(PAGE, "settings", &source.table("Setup"));
    part(PAGE, "vm", &source.table("VmSpec"));
    part(PAGE, "step", &source.table("StepSpec"));
    part(PAGE, "expect", &source.table("Expected"));
    part(PAGE, "faults", &source.kinds_table("Fault", "`kind`"));
    part(PAGE, "acts", &source.kinds_table("Act", "`do`"));
    let words =
        ["SshFault", "BogusReply", "CephFault", "Claimant", "Looker"].iter().flat_map(|name| source.words(name));
    let words: Vec<_> = words.map(|(word, docs)| vec![format!("`{word}`"), docs]).collect();
    part(PAGE, "how", &table(&["`how`", "what it does"], &words));
}

#[test]
fn every_kind_on_the_page_is_taken_with_its_keys_and_not_without() {
    let source = Source::read();
    let read = |step: &str| {
        let story = format!("title = 't'\nlasting = 60\n[[vm]]\nhost = 'host-0'\n[[step]]\nat = 1\n{step}\n");
        Scenario::parse(&story).map(|_| ()).map_err(|why| format!("{step}: {why}"))
    };
    let mut kinds = 0;
    for (name, tag, field) in [("Fault", "kind", "fault"), ("Act", "do", "act")] {
        for (kind, keys, _) in source.kinds(name) {
            kinds += 1;
            let step = |keys: &[&Key], nth: usize| {
                let keys =
                    keys.iter().map(|key| format!(", {} = {}", key.name, source.value(key, nth % source.choices(key))));
                format!("{field} = {{ {tag} = \"{kind}\"{} }}", keys.collect::<String>())
            };
            let all: Vec<&Key> = keys.iter().collect();
            for nth in 0..keys.iter().map(|key| source.choices(key)).max().unwrap_or(1) {
                read(&step(&all, nth)).unwrap();
            }
            for left_out in &keys {
                let rest: Vec<&Key> = keys.iter().filter(|key| key.name != left_out.name).collect();
                assert_eq!(read(&step(&rest, 0)).is_ok(), left_out.optional, "{kind} without {}", left_out.name);
            }
        }
    }
    assert!(kinds >= 35, "{kinds} kinds");
}
