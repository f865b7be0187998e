import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { Transform, Type } from 'class-transformer';
import {
  IsDefined,
  IsIn,
  IsInt,
  IsObject,
  IsOptional,
  IsString,
  Length,
  MaxLength,
  Min,
  ValidateNested,
} from 'class-validator';
import { EmptyIsAbsent, IsEntityId, NoNul } from '../common/http';

/** 1 to 32,000 UTF-16 units: what `Length` would count is code points. */
export const MAX_CONTENT_CHARS = 32_000;

export class SentMessage {
  @ApiProperty({
    description: 'What the user says.',
    minLength: 1,
    maxLength: MAX_CONTENT_CHARS,
    example: '中国必胜',
  })
  @IsString()
  @NoNul()
  content!: string;

  @ApiPropertyOptional({ description: 'The message this one answers; absent: the newest of the dialogue.' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  parentId?: string;
}

export class SendMessage {
  @ApiProperty({ type: SentMessage })
  @IsDefined()
  @IsObject()
  @ValidateNested()
  @Type(() => SentMessage)
  speechUserDialogueMessage!: SentMessage;

  @ApiPropertyOptional({ description: "Overrides the assistant's model service; a text service." })
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  modelServiceId?: string;

  @ApiPropertyOptional({
    description: "A new dialogue's name, of which 200 characters are kept; default: the message's first 30.",
    maxLength: MAX_CONTENT_CHARS,
  })
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  @MaxLength(MAX_CONTENT_CHARS)
  @NoNul()
  name?: string;

  @ApiPropertyOptional({ description: 'An existing dialogue; absent: a new one.' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  id?: string;
}

const toInteger = ({ value }: { value: unknown }): unknown => {
  if (value === '') return undefined;
  return typeof value === 'string' && /^\d{1,9}$/.test(value) ? Number(value) : value;
};

const MAX_PAGE_SIZE = 200;

/** Paging of every list: a page larger than 200 counts as 200, an empty string as absent. */
export class ListQuery {
  @ApiPropertyOptional({ minimum: 1, default: 1 })
  @Transform(toInteger)
  @IsOptional()
  @IsInt()
  @Min(1)
  pageNum?: number;

  @ApiPropertyOptional({ minimum: 1, description: `more than ${MAX_PAGE_SIZE} counts as ${MAX_PAGE_SIZE}` })
  @Transform(toInteger)
  @IsOptional()
  @IsInt()
  @Min(1)
  pageSize?: number;

  @ApiPropertyOptional({ description: 'camelCase or snake_case' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  @Length(1, 40)
  orderByColumn?: string;

  @ApiPropertyOptional({ enum: ['asc', 'desc'] })
  @EmptyIsAbsent()
  @IsOptional()
  @IsIn(['asc', 'desc'])
  isAsc?: 'asc' | 'desc';
}

export class DialogueListQuery extends ListQuery {
  @ApiPropertyOptional({ description: 'The assistant.' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  manageId?: string;

  @ApiPropertyOptional({
    enum: ['true', 'false'],
    description: "true: this user's; false: the whole space's",
  })
  @EmptyIsAbsent()
  @IsOptional()
  @IsIn(['true', 'false'])
  isUser?: 'true' | 'false';
}

export class RecordListQuery extends ListQuery {
  @ApiPropertyOptional({ description: 'The app.' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  templateId?: string;

  @ApiPropertyOptional({
    enum: ['true', 'false'],
    description: "true: this user's; false: the whole space's",
  })
  @EmptyIsAbsent()
  @IsOptional()
  @IsIn(['true', 'false'])
  isUser?: 'true' | 'false';
}

export class Generate {
  @ApiPropertyOptional({ type: Object, description: "The app's variables by name; others are ignored." })
  @EmptyIsAbsent()
  @IsOptional()
  @IsObject()
  params?: Record<string, unknown>;

  @ApiPropertyOptional({ description: "Overrides the app's model service; one of the same type." })
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  modelServiceId?: string;
}

/** A recording that is not in a form: one of the two. */
export class SpokenAudio {
  @ApiPropertyOptional({ maxLength: 4000, description: 'where it can be fetched' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  @MaxLength(4_000)
  url?: string;

  @ApiPropertyOptional({ description: 'the file itself' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  base64?: string;

  @ApiPropertyOptional({ description: 'accepted; what it is, its content says' })
  @IsOptional()
  format?: unknown;
}

export class AudioOptions {
  @ApiPropertyOptional({ description: 'Default: the first that turns speech into text.' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  modelServiceId?: string;
}

export class ModelListQuery extends ListQuery {
  @ApiPropertyOptional({ enum: [0, 1, 2, 3], description: '0 text, 1 image, 2 embedding, 3 speech to text' })
  @Transform(toInteger)
  @IsOptional()
  @IsIn([0, 1, 2, 3])
  modelServiceType?: number;
}
