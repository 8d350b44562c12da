"""The words that the nano task and its base model share: names, countable things, containers, places.

The base meets these words in other sentences (corpus.py) than the task does (prepare.py), as a large model has met the
words of GSM8K before it is fine-tuned on it. Every thing is (Vietnamese with its classifier, English singular, English
plural): in Vietnamese one counts with a classifier, "ba quả táo", so the classifier belongs to the thing.
"""

NAMES = """An Bảo Bình Chi Cường Diệp Dũng Duy Giang Hà Hải Hạnh Hiếu Hoa Hoàng Hùng Hương Khánh Khoa Kiên Lan Linh Long
Ly Mai Minh My Nam Nga Ngân Ngọc Nhung Oanh Phong Phúc Phương Quân Quỳnh Sơn Tâm Thảo Thành Thủy Trang Trung Tú Tuấn Uyên
Vân Việt Vy Yến""".split()

FRUIT = [("quả táo", "apple", "apples"), ("quả cam", "orange", "oranges"), ("quả chuối", "banana", "bananas"),
         ("quả xoài", "mango", "mangoes"), ("quả ổi", "guava", "guavas"), ("quả lê", "pear", "pears"),
         ("quả dừa", "coconut", "coconuts"), ("quả bưởi", "pomelo", "pomelos"), ("quả quýt", "tangerine", "tangerines"),
         ("quả chanh", "lemon", "lemons")]
STATIONERY = [("quyển vở", "notebook", "notebooks"), ("cây bút", "pen", "pens"), ("quyển sách", "book", "books"),
              ("cục tẩy", "eraser", "erasers"), ("cái thước", "ruler", "rulers"),
              ("tờ giấy màu", "sheet of paper", "sheets of paper"),
              ("quyển truyện", "storybook", "storybooks"), ("hộp màu", "paint box", "paint boxes")]
TOYS = [("viên bi", "marble", "marbles"), ("con búp bê", "doll", "dolls"), ("quả bóng", "ball", "balls"),
        ("con diều", "kite", "kites"), ("chiếc ô tô đồ chơi", "toy car", "toy cars"), ("tấm thẻ", "card", "cards"),
        ("con tem", "stamp", "stamps"), ("nhãn vở", "label", "labels")]
SWEETS = [("cái kẹo", "candy", "candies"), ("cái bánh", "cake", "cakes"), ("chiếc bánh mì", "loaf", "loaves"),
          ("hộp sữa", "box of milk", "boxes of milk"), ("gói mì", "pack of noodles", "packs of noodles"),
          ("quả trứng", "egg", "eggs"), ("chai nước", "bottle of water", "bottles of water")]
ANIMALS = [("con gà", "chicken", "chickens"), ("con vịt", "duck", "ducks"), ("con bò", "cow", "cows"),
           ("con cá", "fish", "fish"), ("con thỏ", "rabbit", "rabbits"), ("con dê", "goat", "goats"),
           ("con lợn", "pig", "pigs"), ("con chim", "bird", "birds")]
PLANTS = [("bông hoa", "flower", "flowers"), ("cây cam", "orange tree", "orange trees"),
          ("cây chuối", "banana tree", "banana trees"),
          ("cây xoài", "mango tree", "mango trees"), ("chậu hoa", "flower pot", "flower pots"), ("bông hồng", "rose", "roses")]
THINGS = FRUIT + STATIONERY + TOYS + SWEETS + ANIMALS + PLANTS

CONTAINERS = [("hộp", "box", "boxes"), ("túi", "bag", "bags"), ("giỏ", "basket", "baskets"), ("thùng", "crate", "crates"),
              ("khay", "tray", "trays"), ("rổ", "hamper", "hampers"), ("kệ", "shelf", "shelves"), ("bàn", "table", "tables")]
PLACES = ["cửa hàng", "thư viện", "lớp học", "khu vườn", "nông trại", "siêu thị", "công viên", "nhà kho", "trường học", "chợ",
          "sân vận động", "bảo tàng", "xưởng may", "tiệm bánh", "bến xe", "rạp chiếu phim"]
FAMILY = ["mẹ", "bố", "anh trai", "chị gái", "em trai", "em gái", "ông", "bà", "cô giáo", "bạn"]
DAYS = ["thứ hai", "thứ ba", "thứ tư", "thứ năm", "thứ sáu", "thứ bảy", "chủ nhật"]
COLOURS = [("đỏ", "red"), ("xanh", "blue"), ("vàng", "yellow"), ("trắng", "white"), ("đen", "black"), ("hồng", "pink"),
           ("tím", "purple"), ("nâu", "brown")]
