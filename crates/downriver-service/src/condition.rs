//! What `--where` may say: comparisons of columns with literals, joined by `and`, `or` and `not`, in PostgreSQL's words.
//! Whether the columns are of a table's key, and the literals of their types, the source knows.

use downriver_event::filter::{Comparator, Condition, Written, WrittenFilter};
use downriver_event::problem::Problem;
use sqlparser::ast::{BinaryOperator, Expr, Ident, InTarget, UnaryOperator, Value};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, Tokenizer};

/// Comparisons of one condition: a statement holds each of them.
const COMPARISONS_MAX: usize = 1_000;
/// `a = 1 and`: what is chained is as deep as it is long.
const TOKENS_MAX: usize = 4 * COMPARISONS_MAX;

/// # Errors
/// It is none, or says more than that.
pub(crate) fn parse(text: &str) -> Result<WrittenFilter, Problem> {
    let dialect = PostgreSqlDialect {};
    let none = |error: ParserError| refused(format!("{text:?} is no condition: {error}"));
    let tokens = Tokenizer::new(&dialect, text).tokenize();
    let mut tokens = tokens.map_err(|error| none(error.into()))?;
    tokens.retain(|token| !matches!(token, Token::Whitespace(_)));
    let too_long = || {
        refused(format!(
            "the condition is too long: at most {COMPARISONS_MAX} comparisons can be asked for at once"
        ))
    };
    if tokens.len() > TOKENS_MAX {
        return Err(too_long());
    }
    let mut parser = Parser::new(&dialect).with_tokens(tokens);
    let expr = parser.parse_expr().map_err(none)?;
    parser.expect_token(&Token::EOF).map_err(none)?;
    let condition = condition(&expr, false)?;
    if condition.comparisons().len() > COMPARISONS_MAX {
        return Err(too_long());
    }
    Ok(WrittenFilter {
        text: text.trim().to_owned(),
        condition,
    })
}

fn refused(reason: String) -> Problem {
    Problem::new(
        "DR-2057",
        reason,
        "compare columns of the table's key with literals: --where \"tenant = 7 and id between 100 and 199\"; for anything else read the whole table",
    )
}

/// `negated`: what holds where the expression does not. No column of a key is NULL, so there is no third.
fn condition(expr: &Expr, negated: bool) -> Result<Condition<Written>, Problem> {
    match expr {
        Expr::Nested(inner) => condition(inner, negated),
        Expr::UnaryOp {
            op: UnaryOperator::Not,
            expr,
        } => condition(expr, !negated),
        Expr::BinaryOp {
            left,
            op: op @ (BinaryOperator::And | BinaryOperator::Or),
            right,
        } => {
            let sides = [condition(left, negated)?, condition(right, negated)?];
            Ok(joined((*op == BinaryOperator::And) != negated, sides))
        }
        Expr::BinaryOp { left, op, right } => {
            let comparator = comparator(op).ok_or_else(|| not_understood(expr))?;
            match (column(left), column(right)) {
                (Some(column), _) => compare(column, comparator, right, negated),
                (None, Some(column)) => compare(column, comparator.mirrored(), left, negated),
                (None, None) => Err(not_understood(expr)),
            }
        }
        Expr::Between {
            expr: inner,
            negated: not,
            low,
            high,
        } => {
            let negated = negated != *not;
            let column = column(inner).ok_or_else(|| not_understood(expr))?;
            let bounds = [
                compare(column, Comparator::GreaterOrEqual, low, negated)?,
                compare(column, Comparator::LessOrEqual, high, negated)?,
            ];
            Ok(joined(!negated, bounds))
        }
        Expr::In {
            expr: inner,
            target: InTarget::List(list),
            negated: not,
            global: false,
        } => {
            let negated = negated != *not;
            let column = column(inner).ok_or_else(|| not_understood(expr))?;
            let each = list.iter();
            let each = each.map(|one| compare(column, Comparator::Equal, one, negated));
            Ok(joined(negated, each.collect::<Result<Vec<_>, _>>()?))
        }
        _ => Err(not_understood(expr)),
    }
}

/// What is joined to more of the same stays flat.
fn joined(all: bool, parts: impl IntoIterator<Item = Condition<Written>>) -> Condition<Written> {
    let mut flat = Vec::new();
    for part in parts {
        match part {
            Condition::All(of) if all => flat.extend(of),
            Condition::Any(of) if !all => flat.extend(of),
            part => flat.push(part),
        }
    }
    match all {
        true => Condition::All(flat),
        false => Condition::Any(flat),
    }
}

fn not_understood(expr: &Expr) -> Problem {
    refused(format!(
        "{:?} does not compare a column with literals",
        expr.to_string()
    ))
}

fn comparator(op: &BinaryOperator) -> Option<Comparator> {
    Some(match op {
        BinaryOperator::Eq => Comparator::Equal,
        BinaryOperator::NotEq => Comparator::NotEqual,
        BinaryOperator::Lt => Comparator::Less,
        BinaryOperator::LtEq => Comparator::LessOrEqual,
        BinaryOperator::Gt => Comparator::Greater,
        BinaryOperator::GtEq => Comparator::GreaterOrEqual,
        _ => return None,
    })
}

fn column(expr: &Expr) -> Option<&Ident> {
    match expr {
        Expr::Identifier(name) => Some(name),
        Expr::Nested(inner) => column(inner),
        _ => None,
    }
}

fn compare(
    column: &Ident,
    comparator: Comparator,
    to: &Expr,
    negated: bool,
) -> Result<Condition<Written>, Problem> {
    let comparator = match negated {
        false => comparator,
        true => comparator.negated(),
    };
    Ok(Condition::Is(Written {
        column: match column.quote_style {
            Some(_) => column.value.clone(),
            None => column.value.to_lowercase(),
        },
        comparator,
        literal: literal(to)
            .ok_or_else(|| refused(format!("{:?} is no literal", to.to_string())))?,
    }))
}

fn literal(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Nested(inner) => literal(inner),
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => Some(digits.clone()),
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => {
                Some(text.clone())
            }
            Value::Boolean(value) => Some(value.to_string()),
            _ => None,
        },
        Expr::UnaryOp {
            op: UnaryOperator::Minus,
            expr,
        } => match &**expr {
            Expr::Value(value) => match &value.value {
                Value::Number(digits, _) => Some(format!("-{digits}")),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shown(condition: &Condition<Written>) -> String {
        let joined = |of: &[Condition<Written>], by: &str| {
            let each: Vec<String> = of.iter().map(shown).collect();
            format!("({})", each.join(by))
        };
        match condition {
            Condition::All(of) => joined(of, " and "),
            Condition::Any(of) => joined(of, " or "),
            Condition::Is(is) => {
                format!("{} {} {}", is.column, is.comparator.symbol(), is.literal)
            }
        }
    }

    #[test]
    fn a_condition_is_read_as_postgresql_reads_it() {
        for (text, expected) in [
            ("id = 7", "id = 7"),
            ("-7 < ID", "id > -7"),
            ("\"Id\" <> 'it''s'", "Id <> it's"),
            (
                "a = 1 or b >= 2 and not c < 3",
                "(a = 1 or (b >= 2 and c >= 3))",
            ),
            (
                "a = 1 or b = 2 or (c = 3 or d = 4)",
                "(a = 1 or b = 2 or c = 3 or d = 4)",
            ),
            ("not (a = 1 and b > 2)", "(a <> 1 or b <= 2)"),
            (
                "id between 1 and 9 and t != 'x'",
                "(id >= 1 and id <= 9 and t <> x)",
            ),
            ("id not between 1 and 9", "(id < 1 or id > 9)"),
            ("not id not in (1, 2)", "(id = 1 or id = 2)"),
            ("id not in (1, 2)", "(id <> 1 and id <> 2)"),
            (
                "(day) >= ('2026-01-01') and ok = true",
                "(day >= 2026-01-01 and ok = true)",
            ),
        ] {
            assert_eq!(shown(&parse(text).unwrap().condition), expected, "{text}");
        }
    }

    #[test]
    fn what_says_more_is_refused() {
        for text in [
            "",
            "id",
            "id = 1;",
            "id = 1; drop table orders",
            "id = other",
            "id = id + 1",
            "lower(name) = 'a'",
            "name like 'a%'",
            "id is null",
            "id = null",
            "id in (select 1)",
            "t.id = 1",
            "id = $1",
            "id = 1 union select 2",
            "true",
        ] {
            assert_eq!(parse(text).unwrap_err().code, "DR-2057", "{text}");
        }
        let ids = |count: usize, by: &str| {
            let each: Vec<String> = (0..count).map(|id| id.to_string()).collect();
            each.join(by)
        };
        assert!(parse(&format!("id in ({})", ids(COMPARISONS_MAX, ", "))).is_ok());
        assert!(parse(&format!("id in ({})", ids(COMPARISONS_MAX + 1, ", "))).is_err());
        let chained = |count| parse(&format!("id = {}", ids(count, " or id = ")));
        let Condition::Any(flat) = chained(COMPARISONS_MAX).unwrap().condition else {
            panic!("it is a choice");
        };
        assert_eq!(flat.len(), COMPARISONS_MAX);
        assert!(chained(1_000_000).is_err());
        let deep = "(".repeat(10_000) + "id = 1" + &")".repeat(10_000);
        assert!(parse(&deep).is_err());
        let deep = "not ".repeat(10_000) + "id = 1";
        assert!(parse(&deep).is_err());
    }
}
