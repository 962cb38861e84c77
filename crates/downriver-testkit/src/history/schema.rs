//! Changes of tables' shapes.

use rand::Rng;
use rand::seq::IndexedRandom as _;

use super::table::{Column, Table};
use super::values::{ColumnType, ENUM, Key};
use super::{Act, History, TABLES_MAX};

impl History {
    /// One change by itself, with rows before and behind it that have both shapes.
    pub(super) fn schema_change(&mut self) -> Vec<Act> {
        let mut acts = Vec::new();
        let sql = match self.random.random_range(0..100) {
            0..6 if self.tables.len() < TABLES_MAX => {
                acts.extend(self.create_table().into_iter().map(Act::Sql));
                return acts;
            }
            6..9 if self.tables.len() > 2 => self.drop_table(),
            27..31 => self.make_again(),
            9..15 => self.add_label(),
            15..20 => {
                let at = self.any_table();
                format!("vacuum full {}", self.tables[at].name)
            }
            20..27 => {
                let at = self.any_table();
                if self.tables[at].key == Key::Bag {
                    // Without its identity the server refuses updates of it.
                    return acts;
                }
                let identity = ["full", "default"].choose(&mut self.random).expect("two");
                format!(
                    "alter table {} replica identity {identity}",
                    self.tables[at].name
                )
            }
            _ => match self.schema_change_in_transaction() {
                Some(sql) => sql,
                None => return acts,
            },
        };
        acts.push(Act::Sql(sql));
        acts.push(Act::Sql(self.row_change()));
        acts
    }

    /// A change of some table's columns.
    pub(super) fn schema_change_in_transaction(&mut self) -> Option<String> {
        let at = self.any_table();
        match self.random.random_range(0..100) {
            0..20 => Some(self.add_column(at)),
            20..32 => self.change_type(at),
            32..37 => self.tables[at].change_key(&mut self.random),
            37..41 => Some(self.rename_table(at)),
            41..44 => self.swap_tables(at),
            44..55 => self.drop_column(at),
            55..68 => self.rename_column(at),
            68..75 => self.swap_columns(at),
            75..82 => self.add_column_again(at),
            _ => self.change_default(at),
        }
    }

    /// A new table with a few rows; or with many, which its snapshot needs a while for.
    pub(super) fn create_table(&mut self) -> Vec<String> {
        self.tables_made += 1;
        let columns = self.random.random_range(0..6);
        let number = self.tables_made;
        let name = format!("t{number}");
        let mut table = Table::new(&mut self.random, name, number, columns);
        let rows = *[0, 10, 300, 4_000].choose(&mut self.random).expect("four");
        let mut sql = vec![table.create()];
        if rows > 0 {
            sql.push(table.insert(&mut self.random, rows));
        }
        self.tables.push(table);
        sql
    }

    fn drop_table(&mut self) -> String {
        let at = self.any_table();
        format!("drop table {}", self.tables.remove(at).name)
    }

    /// Dropped, and made again under its name with other columns and another key.
    fn make_again(&mut self) -> String {
        let at = self.any_table();
        let name = self.tables[at].name.clone();
        self.tables_made += 1;
        let columns = self.random.random_range(0..4);
        let table = Table::new(&mut self.random, name, self.tables_made, columns);
        self.tables[at] = table;
        let table = &mut self.tables[at];
        let (name, create) = (table.name.clone(), table.create());
        let rows = table.insert(&mut self.random, 50);
        format!("drop table {name}; {create}; {rows}")
    }

    fn rename_table(&mut self, at: usize) -> String {
        self.tables_made += 1;
        let name = format!("t{}", self.tables_made);
        let old = std::mem::replace(&mut self.tables[at].name, name.clone());
        format!("alter table {old} rename to {name}")
    }

    fn swap_tables(&mut self, one: usize) -> Option<String> {
        let other = self.any_table();
        if one == other {
            return None;
        }
        let (a, b) = (
            self.tables[one].name.clone(),
            self.tables[other].name.clone(),
        );
        let sql = format!(
            "alter table {a} rename to passing; alter table {b} rename to {a}; alter table passing rename to {b}"
        );
        self.tables[one].name = b;
        self.tables[other].name = a;
        Some(sql)
    }

    /// Every row gets a value of another type, or another one of the same, and no event tells of it.
    fn change_type(&mut self, at: usize) -> Option<String> {
        let column = self.any_column(at)?;
        let ty = ColumnType::draw(&mut self.random);
        let values = ty.varied(&mut self.random, "n");
        let table = &mut self.tables[at];
        table.columns[column].ty = ty;
        let Column { name, ty } = &table.columns[column];
        Some(format!(
            "alter table {0} alter {name} drop default; alter table {0} alter {name} type {1} using {values}",
            table.name,
            ty.sql()
        ))
    }

    fn add_label(&mut self) -> String {
        self.labels_made += 1;
        format!(
            "alter type {ENUM} add value 'later {}' before 'g1'",
            self.labels_made
        )
    }

    fn new_column(&mut self) -> Column {
        self.columns_made += 1;
        Column {
            name: format!("x{}", self.columns_made),
            ty: ColumnType::draw(&mut self.random),
        }
    }

    fn add_column(&mut self, at: usize) -> String {
        let column = self.new_column();
        self.add(at, column)
    }

    fn add(&mut self, at: usize, column: Column) -> String {
        let default = match self.random.random_range(0..10) {
            0..4 => String::new(),
            4..7 => format!(" default {}", column.ty.constant(&mut self.random)),
            7 => format!(" not null default {}", column.ty.constant(&mut self.random)),
            // Drawn for each row.
            8 if column.ty.is("uuid") => " default md5(random()::text)::uuid".to_owned(),
            _ if column.ty.is("float8") => " default random()".to_owned(),
            _ if column.ty.is("bigint") => " generated by default as identity".to_owned(),
            _ => String::new(),
        };
        let table = &mut self.tables[at];
        let sql = format!(
            "alter table {} add column {} {}{default}",
            table.name,
            column.name,
            column.ty.sql()
        );
        // Inserts write null now and then, which these columns refuse.
        if default.contains("not null") || default.contains("identity") {
            return sql + &format!("; alter table {} drop column {}", table.name, column.name);
        }
        table.columns.push(column);
        sql
    }

    fn any_column(&mut self, at: usize) -> Option<usize> {
        let columns = self.tables[at].columns.len();
        (columns > 0).then(|| self.random.random_range(0..columns))
    }

    fn drop_column(&mut self, at: usize) -> Option<String> {
        let column = self.any_column(at)?;
        let table = &mut self.tables[at];
        let dropped = table.columns.remove(column);
        Some(format!(
            "alter table {} drop column {}",
            table.name, dropped.name
        ))
    }

    fn rename_column(&mut self, at: usize) -> Option<String> {
        let column = self.any_column(at)?;
        let new = self.new_column().name;
        let table = &mut self.tables[at];
        let old = std::mem::replace(&mut table.columns[column].name, new.clone());
        Some(format!(
            "alter table {} rename column {old} to {new}",
            table.name
        ))
    }

    fn swap_columns(&mut self, at: usize) -> Option<String> {
        let (one, other) = (self.any_column(at)?, self.any_column(at)?);
        if one == other {
            return None;
        }
        let table = &mut self.tables[at];
        let name = &table.name;
        let (a, b) = (
            table.columns[one].name.clone(),
            table.columns[other].name.clone(),
        );
        let sql = format!(
            "alter table {name} rename column {a} to passing; alter table {name} rename column {b} to {a};
             alter table {name} rename column passing to {b}"
        );
        table.columns[one].name = b;
        table.columns[other].name = a;
        Some(sql)
    }

    /// Dropped, and added under the same name and of the same type.
    fn add_column_again(&mut self, at: usize) -> Option<String> {
        let column = self.any_column(at)?;
        let name = self.tables[at].columns[column].name.clone();
        let ty = self.tables[at].columns[column].ty.clone();
        let dropped = self.tables[at].columns.remove(column);
        let drop = format!(
            "alter table {} drop column {}",
            self.tables[at].name, dropped.name
        );
        Some(drop + "; " + &self.add(at, Column { name, ty }))
    }

    fn change_default(&mut self, at: usize) -> Option<String> {
        let column = self.any_column(at)?;
        let table = &self.tables[at];
        let Column { name, ty } = &table.columns[column];
        let to = match self.random.random_range(0..2) {
            0 => "drop default".to_owned(),
            _ => format!("set default {}", ty.constant(&mut self.random)),
        };
        Some(format!(
            "alter table {} alter column {name} {to}",
            table.name
        ))
    }
}
