"""The words that the nano task and its base model share: names, things, containers, places.

The base meets these words in other sentences (corpus.py) than the task does (templates.py), just as
a large model has met the words of GSM8K before it is fine-tuned on GSM8K.

Vietnamese counts with a classifier: "ba quả táo" is three [fruit] apple. So "quả" is part of the
thing here.
"""


def parse_table(text: str) -> list:
    """Rows of a table, one per line, with cells separated by " | ".

    An indented line continues the row above it, and \\n in a cell is a line break. Returns a tuple
    per row, or a string where a row has a single cell.
    """
    rows = []
    for line in text.strip().replace("\n    ", " ").splitlines():
        cells = line.replace(r"\n", "\n").split(" | ")
        rows.append(tuple(cells) if len(cells) > 1 else cells[0])
    return rows


def parse_tables(vietnamese: str, english: str) -> dict[str, list]:
    return {"vi": parse_table(vietnamese), "en": parse_table(english)}


NAMES = """
An Bảo Bình Chi Cường Diệp Dũng Duy Giang Hà Hải Hạnh Hiếu Hoa Hoàng Hùng Hương Khánh Khoa Kiên Lan
Linh Long Ly Mai Minh My Nam Nga Ngân Ngọc Nhung Oanh Phong Phúc Phương Quân Quỳnh Sơn Tâm Thảo
Thành Thủy Trang Trung Tú Tuấn Uyên Vân Việt Vy Yến
""".split()

# ----- things to count: Vietnamese with the classifier | English singular | English plural -----

FRUIT = parse_table("""
quả táo | apple | apples
quả cam | orange | oranges
quả chuối | banana | bananas
quả xoài | mango | mangoes
quả ổi | guava | guavas
quả lê | pear | pears
quả dừa | coconut | coconuts
quả bưởi | pomelo | pomelos
quả quýt | tangerine | tangerines
quả chanh | lemon | lemons
""")
STATIONERY = parse_table("""
quyển vở | notebook | notebooks
cây bút | pen | pens
quyển sách | book | books
cục tẩy | eraser | erasers
cái thước | ruler | rulers
tờ giấy màu | sheet of paper | sheets of paper
quyển truyện | storybook | storybooks
hộp màu | paint box | paint boxes
""")
TOYS = parse_table("""
viên bi | marble | marbles
con búp bê | doll | dolls
quả bóng | ball | balls
con diều | kite | kites
chiếc ô tô đồ chơi | toy car | toy cars
tấm thẻ | card | cards
con tem | stamp | stamps
nhãn vở | label | labels
""")
SWEETS = parse_table("""
cái kẹo | candy | candies
cái bánh | cake | cakes
chiếc bánh mì | loaf | loaves
hộp sữa | box of milk | boxes of milk
gói mì | pack of noodles | packs of noodles
quả trứng | egg | eggs
chai nước | bottle of water | bottles of water
""")
ANIMALS = parse_table("""
con gà | chicken | chickens
con vịt | duck | ducks
con bò | cow | cows
con cá | fish | fish
con thỏ | rabbit | rabbits
con dê | goat | goats
con lợn | pig | pigs
con chim | bird | birds
""")
PLANTS = parse_table("""
bông hoa | flower | flowers
cây cam | orange tree | orange trees
cây chuối | banana tree | banana trees
cây xoài | mango tree | mango trees
chậu hoa | flower pot | flower pots
bông hồng | rose | roses
""")
THINGS = FRUIT + STATIONERY + TOYS + SWEETS + ANIMALS + PLANTS
CONTAINERS = parse_table("""
hộp | box | boxes
túi | bag | bags
giỏ | basket | baskets
thùng | crate | crates
khay | tray | trays
rổ | hamper | hampers
kệ | shelf | shelves
bàn | table | tables
""")

# ----- other words: Vietnamese | English -----

PLACES = parse_table("""
cửa hàng | shop
thư viện | library
lớp học | classroom
khu vườn | garden
nông trại | farm
siêu thị | supermarket
công viên | park
nhà kho | warehouse
trường học | school
chợ | market
sân vận động | stadium
bảo tàng | museum
xưởng may | sewing workshop
tiệm bánh | bakery
bến xe | bus station
rạp chiếu phim | cinema
""")
FAMILY = parse_table("""
mẹ | mother
bố | father
anh trai | older brother
chị gái | older sister
em trai | younger brother
em gái | younger sister
ông | grandfather
bà | grandmother
cô giáo | teacher
bạn | friend
""")
DAYS = parse_table("""
thứ hai | Monday
thứ ba | Tuesday
thứ tư | Wednesday
thứ năm | Thursday
thứ sáu | Friday
thứ bảy | Saturday
chủ nhật | Sunday
""")
COLOURS = parse_table("""
đỏ | red
xanh | blue
vàng | yellow
trắng | white
đen | black
hồng | pink
tím | purple
nâu | brown
""")
