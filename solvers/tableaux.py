"""Runge-Kutta coefficients as data: rationals for the classical ones, phi-function terms for the exponential ones."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction as Q

from diffsolve.validate import finite


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method; `error` = b - b_low for an embedded pair. Row i of `a` has i entries.

    Stages that only `error` reads stand last.
    """

    c: tuple[Q, ...]
    a: tuple[tuple[Q, ...], ...]
    b: tuple[Q, ...]
    order: int
    error: tuple[Q, ...] = ()


Term = tuple[Q | int, int] | tuple[Q | int, int, Q]
"""(coefficient, k) or (coefficient, k, c): coefficient times phi_k(c L h), c the row's own node unless it is given."""
Weights = tuple[tuple[Term, ...], ...]
"""A row: the sum of terms that each stage's value is multiplied by."""


@dataclass(frozen=True)
class ExponentialTableau:
    """An explicit exponential Runge-Kutta method for u' = L u + N.

    Row i of `a` leads to c_i, `b` to the end (c = 1), and `error` = b - b_low. The first stage's weight, where its
    terms are left empty, follows from consistency: a row sums to c_i phi_1(c_i L h), b to phi_1(L h), error to 0. At
    L = 0, where phi_k is 1/k!, this is a classical Runge-Kutta method.
    """

    c: tuple[Q, ...]
    a: tuple[Weights, ...]
    b: Weights
    order: int
    error: Weights = ()


def _row(entries: str) -> tuple[Q, ...]:
    return tuple(Q(entry) for entry in entries.split())


def _tableau(c: str, a: tuple[str, ...], b: str, order: int, low: str = "") -> Tableau:
    """low: the weights of the embedded solution, as papers print them."""
    high = _row(b)
    error = tuple(x - y for x, y in zip(high, _row(low), strict=True)) if low else ()
    return Tableau(_row(c), tuple(_row(row) for row in a), high, order, error)


EULER = _tableau("0", ("",), "1", 1)
MIDPOINT = _tableau("0 1/2", ("", "1/2"), "0 1", 2)
HEUN = _tableau("0 1", ("", "1"), "1/2 1/2", 2, low="1 0")
# Fehlberg 1969 (NASA TR R-315), RK1(2), carried on with its order 2
FEHLBERG2 = _tableau("0 1/2 1", ("", "1/2", "1/256 255/256"), "1/512 255/256 1/512", 2, low="1/256 255/256 0")
# Three stages, order 3: Kutta 1901, Heun 1900, Ralston 1962, Shu & Osher 1988 (strong stability preserving)
KUTTA3 = _tableau("0 1/2 1", ("", "1/2", "-1 2"), "1/6 2/3 1/6", 3)
HEUN3 = _tableau("0 1/3 2/3", ("", "1/3", "0 2/3"), "1/4 0 3/4", 3)
RALSTON3 = _tableau("0 1/2 3/4", ("", "1/2", "0 3/4"), "2/9 1/3 4/9", 3)
SSP3 = _tableau("0 1 1/2", ("", "1", "1/4 1/4"), "1/6 1/6 2/3", 3)
# Bogacki & Shampine 1989, 3(2): Ralston's with a fourth stage that serves the error estimate alone
BS23 = _tableau("0 1/2 3/4 1", ("", "1/2", "0 3/4", "2/9 1/3 4/9"), "2/9 1/3 4/9 0", 3, low="7/24 1/4 1/3 1/8")
# Kutta 1901, both
RK4 = _tableau("0 1/2 1/2 1", ("", "1/2", "0 1/2", "0 0 1"), "1/6 1/3 1/3 1/6", 4)
RK4_38 = _tableau("0 1/3 2/3 1", ("", "1/3", "-1/3 1", "1 -1 1"), "1/8 3/8 3/8 1/8", 4)
# Dormand & Prince 1980, RK5(4)7M; the seventh stage serves the error estimate alone
DOPRI5 = _tableau(
    "0 1/5 3/10 4/5 8/9 1 1",
    (
        "",
        "1/5",
        "3/40 9/40",
        "44/45 -56/15 32/9",
        "19372/6561 -25360/2187 64448/6561 -212/729",
        "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
        "35/384 0 500/1113 125/192 -2187/6784 11/84",
    ),
    "35/384 0 500/1113 125/192 -2187/6784 11/84 0",
    5,
    low="5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40",
)
# Cash & Karp 1990, 5(4)
CASH_KARP = _tableau(
    "0 1/5 3/10 3/5 1 7/8",
    (
        "",
        "1/5",
        "3/40 9/40",
        "3/10 -9/10 6/5",
        "-11/54 5/2 -70/27 35/27",
        "1631/55296 175/512 575/13824 44275/110592 253/4096",
    ),
    "37/378 0 250/621 125/594 0 512/1771",
    5,
    low="2825/27648 0 18575/48384 13525/55296 277/14336 1/4",
)
# Tsitouras 2011, 5(4), in the sixteen digits that are published: the order conditions hold to rounding
TSIT5 = _tableau(
    "0 0.161 0.327 0.9 0.9800255409045097 1 1",
    (
        "",
        "0.161",
        "-0.008480655492356989 0.335480655492357",
        "2.8971530571054935 -6.359448489975075 4.3622954328695815",
        "5.325864828439257 -11.748883564062828 7.4955393428898365 -0.09249506636175525",
        "5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401 -0.028269050394068383",
        "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774",
    ),
    "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774 0",
    5,
    low="0.09824077787029100714 0.0108164344596567469 0.472008772404237605 1.5237195812770049 -3.8724266808886362"
    " 2.78279263002896097 -0.015151515151515152",
)
# Verner 1978, 6(5), the method of DVERK (Hull, Enright & Jackson 1976); its sixth stage, for the error alone, is last
VERNER6 = _tableau(
    "0 1/6 4/15 2/3 5/6 1/15 1 1",
    (
        "",
        "1/6",
        "4/75 16/75",
        "5/6 -8/3 5/2",
        "-165/64 55/6 -425/64 85/96",
        "-8263/15000 124/75 -643/680 -81/250 2484/10625",
        "3501/1720 -300/43 297275/52632 -319/2322 24068/84065 3850/26703",
        "12/5 -8 4015/612 -11/36 88/255 0 0",
    ),
    "3/40 0 875/2244 23/72 264/1955 125/11592 43/616 0",
    6,
    low="13/160 0 2375/5984 5/16 12/85 0 0 3/44",
)
# Fehlberg 1968 (NASA TR R-287), RK7(8), carried on with its order 7; the last two stages serve the error estimate alone
FEHLBERG78 = _tableau(
    "0 2/27 1/9 1/6 5/12 1/2 5/6 1/6 2/3 1/3 1 0 1",
    (
        "",
        "2/27",
        "1/36 1/12",
        "1/24 0 1/8",
        "5/12 0 -25/16 25/16",
        "1/20 0 0 1/4 1/5",
        "-25/108 0 0 125/108 -65/27 125/54",
        "31/300 0 0 0 61/225 -2/9 13/900",
        "2 0 0 -53/6 704/45 -107/9 67/90 3",
        "-91/108 0 0 23/108 -976/135 311/54 -19/60 17/6 -1/12",
        "2383/4100 0 0 -341/164 4496/1025 -301/82 2133/4100 45/82 45/164 18/41",
        "3/205 0 0 0 0 -6/41 -3/205 -3/41 3/41 6/41 0",
        "-1777/4100 0 0 -341/164 4496/1025 -289/82 2193/4100 51/82 33/164 12/41 0 1",
    ),
    "41/840 0 0 0 0 34/105 9/35 9/35 9/280 9/280 41/840 0 0",
    7,
    low="0 0 0 0 0 34/105 9/35 9/35 9/280 9/280 0 41/840 41/840",
)
# Prince & Dormand 1981, RK8(7)13M, in the rationals that are published: the order conditions hold to rounding
DOPRI8 = _tableau(
    "0 1/18 1/12 1/8 5/16 3/8 59/400 93/200 5490023248/9719169821 13/20 1201146811/1299019798 1 1",
    (
        "",
        "1/18",
        "1/48 1/16",
        "1/32 0 3/32",
        "5/16 0 -75/64 75/64",
        "3/80 0 0 3/16 3/20",
        "29443841/614563906 0 0 77736538/692538347 -28693883/1125000000 23124283/1800000000",
        "16016141/946692911 0 0 61564180/158732637 22789713/633445777 545815736/2771057229 -180193667/1043307555",
        "39632708/573591083 0 0 -433636366/683701615 -421739975/2616292301 100302831/723423059 790204164/839813087"
        " 800635310/3783071287",
        "246121993/1340847787 0 0 -37695042795/15268766246 -309121744/1061227803 -12992083/490766935"
        " 6005943493/2108947869 393006217/1396673457 123872331/1001029789",
        "-1028468189/846180014 0 0 8478235783/508512852 1311729495/1432422823 -10304129995/1701304382"
        " -48777925059/3047939560 15336726248/1032824649 -45442868181/3398467696 3065993473/597172653",
        "185892177/718116043 0 0 -3185094517/667107341 -477755414/1098053517 -703635378/230739211"
        " 5731566787/1027545527 5232866602/850066563 -4093664535/808688257 3962137247/1805957418 65686358/487910083",
        "403863854/491063109 0 0 -5068492393/434740067 -411421997/543043805 652783627/914296604"
        " 11173962825/925320556 -13158990841/6184727034 3936647629/1978049680 -160528059/685178525"
        " 248638103/1413531060 0",
    ),
    "14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732 -1041891430/1371343529"
    " 760417239/1151165299 118820643/751138087 -528747749/2220607170 1/4",
    8,
    low="13451932/455176623 0 0 0 0 -808719846/976000145 1757004468/5645159321 656045339/265891186"
    " -3867574721/1518517206 465885868/322736535 53011238/667516719 2/45 0",
)

def place(given: float | str, name: str) -> Q:
    """A stage's node as an option gives it: 0.5, "2/3", or a float that only prints as a third. Raises ValueError.

    Nearer to 0 than a thousandth the difference of two stages is lost in rounding, and divided by the node.
    """
    try:
        exact = Q(given) if isinstance(given, str) else Q(finite(given) or 0)
    except (ValueError, ZeroDivisionError):
        exact = Q(0)
    if not 1e-3 <= exact <= 2:
        raise ValueError(f"{name} must be a number from 0.001 to 2, or text such as '2/3', got {given!r}")
    near = exact.limit_denominator(1000)
    return near if float(near) == float(exact) else exact


EXPONENTIAL_EULER = ExponentialTableau((Q(0),), ((),), ((),), 1)


def dpm_2(r: Q = Q(1, 2)) -> ExponentialTableau:
    """DPM-Solver-2 (Lu et al. 2022, Algorithm 1 and eq. 3.8 for any r); r = 1/2 is the exponential midpoint rule.

    Embedded: exponential Euler, as in DPM-Solver-12 (app. C).
    """
    b: Weights = ((), ((1 / (2 * r), 1),))
    return ExponentialTableau((Q(0), r), ((), ((),)), b, 2, error=b)


def dpm_3(r1: Q = Q(1, 3), r2: Q = Q(2, 3)) -> ExponentialTableau:
    """DPM-Solver-3 (Lu et al. 2022, Algorithm 2). Embedded: DPM-Solver-2 at r1, as in DPM-Solver-23 (app. C).

    With an r2 other than 2/3 it is of order 2 only.
    """
    a: tuple[Weights, ...] = ((), ((),), ((), ((r2 * r2 / r1, 2),)))
    last = (1 / r2, 2)
    order, error = 3 if r2 == Q(2, 3) else 2, ((), ((-1 / (2 * r1), 1),), (last,))
    return ExponentialTableau((Q(0), r1, r2), a, ((), (), (last,)), order, error)


def res_2(c2: Q = Q(1, 2)) -> ExponentialTableau:
    """Hochbruck & Ostermann 2005, eq. 5.3; RES of order 2 (Zhang et al. 2023). Embedded: exponential Euler."""
    b: Weights = ((), ((1 / c2, 2),))
    return ExponentialTableau((Q(0), c2), ((), ((),)), b, 2, error=b)


def res_3(c2: Q = Q(1, 2), c3: Q = Q(1)) -> ExponentialTableau:
    """Hochbruck & Ostermann 2005, eq. 5.8; RES of order 3 (Zhang et al. 2023). Embedded: `res_2` at c2.

    gamma solves 2 (gamma c2 + c3) = 3 (gamma c2^2 + c3^2); c2 = 2/3 has none.
    """
    gamma = (3 * c3 * c3 - 2 * c3) / (c2 * (2 - 3 * c2))
    share = 1 / (gamma * c2 + c3)
    a: tuple[Weights, ...] = ((), ((),), ((), ((gamma * c2, 2, c2), (c3 * c3 / c2, 2))))
    second, third = gamma * share, (share, 2)
    error: Weights = ((), ((second - 1 / c2, 2),), (third,))
    return ExponentialTableau((Q(0), c2, c3), a, ((), ((second, 2),), (third,)), 3, error)


_HALVES = (Q(0), Q(1, 2), Q(1, 2), Q(1))
_MIDDLE = ((2, 2), (-4, 3))
_SIMPSON: Weights = ((), _MIDDLE, _MIDDLE, ((-1, 2), (4, 3)))  # 1/6, 1/3, 1/3, 1/6 at L = 0
# Cox & Matthews 2002, eq. 26 to 29
ETDRK4 = ExponentialTableau(_HALVES, ((), ((),), ((), ((Q(1, 2), 1),)), ((), (), ((1, 1, Q(1, 2)),))), _SIMPSON, 4)
# Krogstad 2005, eq. 51
KROGSTAD = ExponentialTableau(_HALVES, ((), ((),), ((), ((1, 2),)), ((), (), ((2, 2),))), _SIMPSON, 4)
# Lawson 1967: Kutta's classical method on e^(-L s) u
_NOTHING = ((0, 0),)
LAWSON4 = ExponentialTableau(
    _HALVES,
    ((), (((Q(1, 2), 0),),), (_NOTHING, ((Q(1, 2), 0, Q(0)),)), (_NOTHING, (), ((1, 0, Q(1, 2)),))),
    (((Q(1, 6), 0),), ((Q(1, 3), 0, Q(1, 2)),), ((Q(1, 3), 0, Q(1, 2)),), ((Q(1, 6), 0, Q(0)),)),
    4,
)
# Hochbruck & Ostermann 2005, eq. 5.19
_A52: tuple[Term, ...] = ((Q(1, 2), 2), (-1, 3, Q(1)), (Q(1, 4), 2, Q(1)), (Q(-1, 2), 3))
_A54: tuple[Term, ...] = ((Q(-1, 4), 2), (1, 3, Q(1)), (Q(-1, 4), 2, Q(1)), (Q(1, 2), 3))
HOCHBRUCK_OSTERMANN = ExponentialTableau(
    (*_HALVES, Q(1, 2)),
    ((), ((),), ((), ((1, 2),)), ((), ((1, 2),), ((1, 2),)), ((), _A52, _A52, _A54)),
    ((), (), (), ((-1, 2), (4, 3)), ((4, 2), (-8, 3))),
    4,
)
